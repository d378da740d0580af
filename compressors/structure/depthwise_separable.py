"""Replaces a convolution by one filter for each channel and a 1x1 convolution behind them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from plywise.compressors.modules.composition import Chain
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


@dataclass(frozen=True)
class DepthwiseSeparable(Technique):
    """A depthwise convolution before a pointwise one, without anything between them.

    Each input channel's kernels are projected on their leading directions, weighted by the channel's own patch
    covariance; the pointwise weights are the least-squares fit to all filtered channels together; then both are
    fitted jointly. Departure from MobileNet: no normalisation or ReLU in between, as the start is a linear fit.
    """

    name: ClassVar[str] = "depthwise_separable"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    summary: ClassVar[str] = "a filter for each channel and a 1x1 mix: a tenth of the macs, much accuracy; fine-tune"
    source: ClassVar[str] = (
        "Howard et al., MobileNets, 2017, section 3.1 (block); Liu et al., AdaDeep, 2018, table 1 (as compression); "
        "Guo et al., Network Decoupling, 2018, section 3.2 (several filters for each channel, in closed form)"
    )

    filters: int = choice(1, grid=(1, 2, 4), low=1, high=64, help="filters for each input channel")

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses kernels of one weight, grouped convolutions, and filters that save nothing."""
        if not isinstance(layer, CONVOLUTIONS):
            return f"{type(layer).__name__} has no kernel to separate"
        if is_pointwise(layer):
            return "a 1x1 kernel is the pointwise part already"
        if groups_of(layer) > 1:
            return "a grouped convolution is already separated in part"
        outputs, positions = weight_of(layer).shape[0], weight_of(layer)[0, 0].numel()
        if self.filters * (positions + outputs) >= outputs * positions:
            return f"{self.filters} filters for each of its channels are no smaller than the layer"
        return None

    def outline(self, layer: nn.Module) -> nn.Sequential:
        """Returns a depthwise and a pointwise convolution."""
        outputs, inputs, *kernel = weight_of(layer).shape
        ones, between = [1] * len(kernel), inputs * self._count(layer)
        own, neutral = strided(layer, [kernel, ones])
        depthwise = outline_leaf(layer, (between, 1, *kernel), groups=inputs, **own)
        chain = Chain(depthwise, outline_leaf(layer, (outputs, between, *ones), bias=True, **neutral))
        return chain.train(layer.training)

    def _count(self, layer: nn.Module) -> int:
        # After a cut there may be fewer kernels for each input than there shall be filters.
        outputs, _, *kernel = weight_of(layer).shape
        return min(self.filters, outputs, math.prod(kernel))

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns an `nn.Sequential` of a depthwise and a pointwise convolution."""
        outputs, inputs, *_ = weight_of(layer).shape
        matrix, covariance = weight_matrices(layer)[0].double(), damped(statistics.covariance)[0]
        # In units of the largest weight, so that tiny and huge weights do not leave float32; the mix takes it.
        unit = matrix.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        target = matrix / unit
        start = _start(target.view(outputs, inputs, -1), covariance, self._count(layer))
        filters, mix = fitted(start, target, covariance, _composed)
        approximation = _composed([filters.double(), mix.double()]).flatten(1)
        shift = (target - approximation) @ statistics.mean[0].double() * unit
        kept = bias_of(layer)
        bias = (shift if kept is None else kept.double() + shift).float()
        return filled(self.outline(layer), [filters, mix.double() * unit], bias)


def _composed(kernels: Sequence[Tensor]) -> Tensor:
    """Returns `(out, in, positions)` of filters `(in, filters, positions)` and their mix `(out, in, filters)`."""
    return torch.einsum("oif,ifp->oip", kernels[1], kernels[0])


def _start(whole: Tensor, covariance: Tensor, count: int) -> list[Tensor]:
    outputs, inputs, positions = whole.shape
    channels = covariance.view(inputs, positions, inputs, positions).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    root = torch.linalg.cholesky(channels)  # (in, positions, positions)
    _, _, right = torch.linalg.svd(whole.transpose(0, 1) @ root, full_matrices=False)
    # Directions of the weighted kernels, taken back: rows f with f root = right.
    filters = torch.linalg.solve_triangular(root, right[:, :count], upper=False, left=False)  # (in, filters, positions)
    filters = filters / filters.abs().amax(2, keepdim=True).clamp(min=1e-30)
    wide: Tensor = torch.block_diag(*filters)  # type: ignore[no-untyped-call]  # (in * filters, in * positions)
    moment = damped((wide @ covariance @ wide.T)[None], 1e-6)[0]
    mix = torch.linalg.solve(moment, wide @ covariance @ whole.flatten(1).T).T
    return [filters, mix.view(outputs, inputs, count)]
