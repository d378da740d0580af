"""Gradients through a network whose parameters may be frozen."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def gradients(model: nn.Module) -> Iterator[None]:
    """Lets every parameter of `model` take part in automatic differentiation, and puts all as they were afterwards."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in flags:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
