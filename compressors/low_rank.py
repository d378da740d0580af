"""Replaces a layer by a chain of two or three smaller ones."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from plywise.compressors.error_feedback import damped
from plywise.compressors.layers import (
    WEIGHTED,
    bias_of,
    groups_of,
    is_pointwise,
    make_layer,
    weight_matrices,
    weight_of,
)
from plywise.compressors.statistics import LayerStatistics
from plywise.compressors.technique import Stage, Technique, choice

STEP = 4
"""Ranks are multiples of this where they are larger than it twice over."""


@dataclass(frozen=True)
class LowRank(Technique):
    """Activation-aware SVD for linear layers and 1x1 convolutions, Tucker decompositions for larger kernels.

    The output side projects on the leading directions of the *output's* covariance `W C W^T`, which is the SVD
    weighted by the input's second moment in closed form (no inverse is needed). The input side is whitened by the
    covariance of the channels, and the core behind it is fitted again by least squares.

    At half of the macs of ResNet-20's layers, `sides="input"` (1x1, then the kernel) loses two to four times less
    of the output's variance than Tucker-2 on both sides, so it is the default.
    """

    name: ClassVar[str] = "low_rank"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    summary: ClassVar[str] = "a chain of thin layers: fewer macs and bytes, more launches"
    source: ClassVar[str] = (
        "Zhang et al., Accelerating Very Deep Networks, 2016, section 3.1 (output side); "
        "Kim et al., Compression of Deep CNNs for Fast and Low Power Mobile Applications, 2016, section 3 (Tucker-2)"
    )

    ratio: float = choice(0.5, grid=(0.6, 0.4, 0.25), low=0.01, high=0.95, help="share of the macs that remains")
    sides: str = choice("input", grid=("input", "both"), help="1x1 before the kernel, or around it (Tucker-2)")

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses grouped convolutions and ranks below 2."""
        if not isinstance(layer, WEIGHTED):
            return f"{type(layer).__name__} has no matrix to factor"
        if groups_of(layer) > 1:
            return "a grouped convolution is already small; its groups do not factor together"
        if min(self.ranks(layer)) < 2:
            return f"rank {self.ranks(layer)} at {self.ratio:g} of the macs is too low to be of use"
        return None

    def ranks(self, layer: nn.Module) -> tuple[int, ...]:
        """Returns the ranks that the technique uses on `layer`; see `ranks_of`."""
        outputs, inputs, *kernel = weight_of(layer).shape
        return self.ranks_of(outputs, inputs, tuple(kernel), tuple(getattr(layer, "stride", ())))

    def ranks_of(self, outputs: int, inputs: int, kernel: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the rank of a pointwise layer or of the input side, or the ranks of both sides (Tucker-2)."""
        positions = math.prod(kernel)
        # The 1x1 in front runs at every position, the kernel behind it only where its stride goes.
        density = math.prod(stride)
        budget = self.ratio * inputs * outputs * positions
        if positions == 1:
            return (_snapped(budget / (inputs + outputs)),)
        if self.sides == "input":
            return (_snapped(budget / (inputs * density + outputs * positions)),)
        # in*(b*in)*density + (b*in)*(b*out)*positions + (b*out)*out = budget, solved for b, the share of both sides.
        square, linear = inputs * outputs * positions, inputs * inputs * density + outputs * outputs
        share = (-linear + (linear**2 + 4 * square * budget) ** 0.5) / (2 * square)
        return _snapped(share * inputs), _snapped(share * outputs)

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns an `nn.Sequential` of two or three thinner layers."""
        factor = _factored if is_pointwise(layer) else _tucker
        return factor(layer, statistics, *self.ranks(layer)).train(layer.training)


def _snapped(rank: float) -> int:
    return int(rank) // STEP * STEP if rank >= 2 * STEP else max(1, int(rank))


def _leading(matrix: Tensor, count: int) -> Tensor:
    """Returns the `count` leading eigenvectors of a symmetric matrix as columns, signs fixed."""
    vectors: Tensor = torch.linalg.eigh(matrix.double()).eigenvectors.flip(1)[:, :count]
    peak = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(peak < 0, -1.0, 1.0)


def _bias(layer: nn.Module, matrix: Tensor, approximation: Tensor, mean: Tensor) -> Tensor:
    shift = ((matrix - approximation) @ mean.double()).float()
    bias = bias_of(layer)
    return shift if bias is None else bias.float() + shift


def _unit(inner: Tensor) -> Tensor:
    """Returns the size of the inner weights: the last leaf takes it, so that what lies between stays in float32."""
    return inner.abs().max().clamp(min=torch.finfo(torch.float32).tiny)


def _factored(layer: nn.Module, statistics: LayerStatistics, rank: int) -> nn.Module:
    matrix = weight_matrices(layer)[0].double()
    basis = _leading(matrix @ damped(statistics.covariance)[0] @ matrix.T, rank)
    inner = basis.T @ matrix
    bias = _bias(layer, matrix, basis @ inner, statistics.mean[0])
    unit = _unit(inner)
    ones = (1,) * (weight_of(layer).dim() - 2)
    strides = {name: getattr(layer, name) for name in ("stride", "padding", "padding_mode") if ones}
    return nn.Sequential(
        make_layer(layer, (inner / unit).reshape(*inner.shape, *ones), None, **strides),
        make_layer(layer, (basis * unit).reshape(*basis.shape, *ones), bias),
    )


def _tucker(layer: nn.Module, statistics: LayerStatistics, rank_in: int, rank_out: int | None = None) -> nn.Module:
    outputs, inputs, *kernel = weight_of(layer).shape
    matrix = weight_matrices(layer)[0].double()
    covariance = damped(statistics.covariance)[0]
    project = _input_directions(matrix, covariance, inputs, rank_in)
    # Core: least squares of the layer's output on the projected patch.
    wide = torch.kron(project.contiguous(), torch.eye(matrix.shape[1] // inputs, dtype=torch.float64))
    cross, moment = matrix @ covariance @ wide.T, wide @ covariance @ wide.T
    core = torch.linalg.solve(moment, cross.T).T  # (out, rank_in * positions)
    settings = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")}
    ones = (1,) * len(kernel)
    first = make_layer(layer, project.reshape(rank_in, inputs, *ones), None)
    if rank_out is None:
        bias = _bias(layer, matrix, core @ wide, statistics.mean[0])
        return nn.Sequential(first, make_layer(layer, core.reshape(outputs, rank_in, *kernel), bias, **settings))
    # Output side: the leading directions of what the core can still say.
    basis = _leading(core @ moment @ core.T, rank_out)
    bias = _bias(layer, matrix, basis @ basis.T @ core @ wide, statistics.mean[0])
    inner = basis.T @ core
    unit = _unit(inner)
    return nn.Sequential(
        first,
        make_layer(layer, (inner / unit).reshape(rank_out, rank_in, *kernel), None, **settings),
        make_layer(layer, (basis * unit).reshape(outputs, rank_out, *ones), bias),
    )


def _input_directions(matrix: Tensor, covariance: Tensor, inputs: int, rank: int) -> Tensor:
    """Returns `(rank, in)`: the directions of the input channels that matter to the layer, whitened by the data."""
    positions = matrix.shape[1] // inputs
    channel = covariance.view(inputs, positions, inputs, positions).diagonal(dim1=1, dim2=3).mean(-1)
    values, vectors = torch.linalg.eigh(channel)
    root = vectors * values.clamp(min=1e-12).sqrt() @ vectors.T
    by_channel = matrix.view(-1, inputs, positions).permute(1, 0, 2).flatten(1)  # (in, out * positions)
    directions = _leading(root @ (by_channel @ by_channel.T) @ root, rank)
    project: Tensor = directions.T @ torch.linalg.inv(root)
    return project
