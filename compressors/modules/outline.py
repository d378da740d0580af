"""The shapes of what takes a layer's place, before there are any weights: leaves that hold no numbers."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.modules.layers import CONVOLUTIONS, WEIGHTED, make_layer


def outline_leaf(layer: nn.Module, shape: Sequence[int], bias: bool = False, **settings: Any) -> nn.Module:
    """Returns a leaf of the type of `layer` on the meta device, where nothing is allocated.

    Args:
        layer: a convolution or a linear layer.
        shape: of its weight, `(out, in / groups, *kernel)`.
        bias: whether it has one.
        settings: as for `make_layer`.
    """
    weight = torch.empty(tuple(shape), device="meta")
    return make_layer(layer, weight, torch.empty(shape[0], device="meta") if bias else None, **settings)


def filled(outline: nn.Sequential, weights: Sequence[Tensor], bias: Tensor) -> nn.Sequential:
    """Gives a chain its weights and returns it.

    Args:
        outline: leaves on the meta device, some of them without weights.
        weights: of each leaf that has any, in as many numbers as it has.
        bias: `(out,)` of the leaves that make the outputs.
    """
    parts = [[leaf for leaf in part.modules() if isinstance(leaf, WEIGHTED)] for part in outline]
    for leaf, weight in zip((leaf for leaves in parts for leaf in leaves), weights, strict=True):
        like = leaf.get_parameter("weight")
        leaf.weight = nn.Parameter(weight.reshape(like.shape).to(like.dtype, copy=True), requires_grad=False)
    last = next(leaves for leaves in reversed(parts) if leaves)
    each = bias.split_with_sizes([len(leaf.get_parameter("weight")) for leaf in last])
    for leaf, own in zip(last, each, strict=True):
        leaf.bias = nn.Parameter(own.to(leaf.get_parameter("weight").dtype, copy=True), requires_grad=False)
    return outline


def strided(layer: nn.Module, kernels: Sequence[Sequence[int]]) -> Iterator[dict[str, Any]]:
    """Yields the settings of each convolution of a chain: along each axis the longest kernel has those of `layer`.

    Args:
        layer: that the chain replaces; a linear layer has no settings.
        kernels: extents of the kernels, in order.
    """
    axes = len(kernels[0])
    longest = [max(range(len(kernels)), key=lambda place: kernels[place][axis]) for axis in range(axes)]
    for place in range(len(kernels)):
        yield _settings(layer, [longest[axis] == place for axis in range(axes)]) if axes else {}


def _settings(layer: nn.Module, own: list[bool]) -> dict[str, Any]:
    """Returns the settings of a convolution, neutral along the axes that are not its `own`."""
    assert isinstance(layer, CONVOLUTIONS)
    settings: dict[str, Any] = {"padding_mode": layer.padding_mode}
    for name, neutral in (("stride", 1), ("dilation", 1), ("padding", 0)):
        value = getattr(layer, name)
        if not isinstance(value, str):
            value = tuple(entry if mine else neutral for entry, mine in zip(value, own, strict=True))
        settings[name] = value
    return settings
