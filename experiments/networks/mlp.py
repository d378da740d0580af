"""Multilayer perceptrons."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Builds linear layers with ReLU between them, over flattened images.

    Args:
        widths: of the input, of the hidden layers and of the output; (784, 300, 100, 10) is LeNet-300-100
            (LeCun et al., 1998).
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for wide_in, wide_out in pairwise(widths):
        layers += [nn.Linear(wide_in, wide_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
