"""Replaces a convolution by a 1x1 squeeze before 1x1 kernels and its own kernels, side by side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from plywise.compressors.modules.branches import Branches
from plywise.compressors.modules.channel_order import ChannelOrder, inverted
from plywise.compressors.modules.composition import Chain, composed, plane, side_by_side
from plywise.compressors.modules.layers import (
    CONVOLUTIONS,
    bias_of,
    groups_of,
    is_pointwise,
    weight_matrices,
    weight_of,
)
from plywise.compressors.modules.outline import filled, outline_leaf, strided
from plywise.compressors.recipes.hyperparameter import choice
from plywise.compressors.recipes.technique import Stage, Technique
from plywise.compressors.statistics.error_feedback import damped
from plywise.compressors.statistics.statistics import LayerStatistics
from plywise.compressors.structure.chain_fit import fitted
from plywise.compressors.structure.low_rank import HIGHEST, input_start, ratio_of, snapped


@dataclass(frozen=True)
class Fire(Technique):
    """A 1x1 kernel to few channels, which half of the outputs read by a 1x1 kernel, half by one of the layer's extent.

    The squeeze starts from the input directions that matter to the layer, whitened by the data, as
    `low_rank(sides=input)` does. On them every output is fitted twice by least squares, with all weights of its kernel
    and with the one in the middle; those that lose least by the second get the 1x1 kernels. Then all three kernels are
    fitted together. A gather puts the outputs in their order. Departure from SqueezeNet: no ReLU behind the squeeze,
    as the layer that is replaced is linear.
    """

    name: ClassVar[str] = "fire"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    summary: ClassVar[str] = "1x1 and larger kernels side by side on few channels: loses more than low_rank; fine-tune"
    source: ClassVar[str] = (
        "Iandola et al., SqueezeNet, 2016, section 3.2 (block); Liu et al., AdaDeep, 2018, table 1 (as compression)"
    )

    ratio: float = choice(0.5, grid=(0.6, 0.4, 0.25), low=0.01, high=HIGHEST, help="share of the macs that remains")

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses all but ungrouped convolutions whose kernels have a middle that moves over the whole input."""
        if not isinstance(layer, CONVOLUTIONS):
            return f"{type(layer).__name__} has no kernel to put a smaller one alongside"
        if is_pointwise(layer):
            return "a 1x1 kernel has no smaller one alongside it"
        if groups_of(layer) > 1:
            return "a grouped convolution is already small; its groups do not share a squeeze"
        if not all(size % 2 for size in layer.kernel_size):
            return f"a kernel of {'x'.join(map(str, layer.kernel_size))} has no middle"
        if min(_borders(layer)) < 0:
            return "its border is narrower than half of its kernel, so 1x1 kernels would give larger outputs"
        if layer.out_channels < 2 or self.squeezed(layer) < 2:
            return f"{self.squeezed(layer)} squeezed channels at {self.ratio:g} of the macs are too few to be of use"
        return None

    def squeezed(self, layer: nn.Module) -> int:
        """Returns the channels that the squeeze leaves, counted without borders."""
        return min(weight_of(layer).shape[1], snapped(self.ratio * weight_of(layer).numel() / _macs(layer, 1)))

    def on_cut(self, whole: nn.Module, cut: nn.Module) -> "Fire":
        """Keeps the squeezed channels of the whole layer, as far as they still save macs."""
        if weight_of(cut).shape == weight_of(whole).shape:
            return self
        return replace(self, ratio=ratio_of(_macs(cut, self.squeezed(whole)), cut))

    def outline(self, layer: nn.Module) -> nn.Sequential:
        """Returns the squeeze, two convolutions side by side, and a gather."""
        outputs, inputs, *kernel = weight_of(layer).shape
        ones, squeezed, narrow = [1] * len(kernel), self.squeezed(layer), outputs // 2
        neutral, own = strided(layer, [ones, kernel])
        wide = outline_leaf(layer, (outputs - narrow, squeezed, *kernel), bias=True, **own)
        alongside = own | {"dilation": tuple(ones), "padding": _borders(wide)}
        # Of one output, after a cut, there is nothing to put alongside.
        branches = [outline_leaf(layer, (narrow, squeezed, *ones), bias=True, **alongside)] if narrow else []
        squeeze = outline_leaf(layer, (squeezed, inputs, *ones), **neutral)
        chain = Chain(squeeze, Branches(*branches, wide), ChannelOrder(range(outputs), 1))
        return chain.train(layer.training)

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns an `nn.Sequential` of the squeeze, two convolutions side by side, and a gather."""
        outputs, inputs, *kernel = weight_of(layer).shape
        matrix, covariance = weight_matrices(layer)[0].double(), damped(statistics.covariance)[0]
        # In units of the largest weight, so that tiny and huge weights do not leave float32; the branches take it.
        unit = matrix.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        target = matrix / unit
        whole = target.view(outputs, inputs, *plane(kernel))
        order, start = _start(whole, covariance, self.squeezed(layer))
        kernels = fitted(start, target[order], covariance, _composed)
        approximation = _composed([part.double() for part in kernels]).flatten(1)
        shift, own = (target[order] - approximation) @ statistics.mean[0].double() * unit, bias_of(layer)
        chain = self.outline(layer)
        chain[2] = ChannelOrder(inverted(order).tolist(), 1)
        weights = [kernels[0], *(part.double() * unit for part in kernels[1:])]
        return filled(chain, weights, shift if own is None else own[order].double() + shift)


def _macs(layer: nn.Module, squeezed: int) -> float:
    """Returns the macs of the block for each position of the output."""
    outputs, inputs, *kernel = weight_of(layer).shape
    assert isinstance(layer, CONVOLUTIONS)
    narrow = outputs // 2
    return squeezed * (inputs * math.prod(layer.stride) + narrow + (outputs - narrow) * math.prod(kernel))


def _borders(layer: nn.Module) -> tuple[int, ...]:
    """Returns the padding with which a 1x1 kernel looks at the middle of what an odd kernel sees."""
    assert isinstance(layer, CONVOLUTIONS)
    half = [gap * (size // 2) for gap, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    if isinstance(layer.padding, str):
        return tuple(0 if layer.padding == "same" else -inside for inside in half)
    return tuple(border - inside for border, inside in zip(layer.padding, half, strict=True))


def _composed(kernels: Sequence[Tensor]) -> Tensor:
    """Returns `(out, in, height, width)` of the squeeze and of what lies side by side behind it."""
    return composed([kernels[0], side_by_side(kernels[1:])])


def _start(whole: Tensor, covariance: Tensor, squeezed: int) -> tuple[Tensor, list[Tensor]]:
    """Returns the order of the outputs in which those with 1x1 kernels come first, and the kernels."""
    project, core = input_start(whole, covariance, squeezed)
    positions, narrow = core[0, 0].numel(), len(whole) // 2
    wide = torch.kron(project[..., 0, 0].contiguous(), torch.eye(positions, dtype=torch.float64))
    moment, cross = wide @ covariance @ wide.T, wide @ covariance @ whole.flatten(1).T  # (squeezed * positions, ...)
    middle = torch.arange(squeezed) * positions + positions // 2
    point = torch.linalg.solve(moment[middle][:, middle], cross[middle]).T  # (out, squeezed)
    lost = (core.flatten(1) * cross.T).sum(1) - (point * cross[middle].T).sum(1)
    order = lost.argsort(stable=True)
    branches = [point[order[:narrow]][..., None, None], core[order[narrow:]]]
    return order, [project, *(branch for branch in branches if len(branch))]
