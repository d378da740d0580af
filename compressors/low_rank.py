"""Replaces a layer by a chain of two or three smaller ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from plywise.compressors.error_feedback import damped
from plywise.compressors.layers import WEIGHTED, groups_of, is_pointwise, make_conv, weight_matrices
from plywise.compressors.statistics import LayerStatistics
from plywise.compressors.technique import Stage, Technique, choice

STEP = 4
"""Ranks are multiples of this where they are larger than it twice over."""


@dataclass(frozen=True)
class LowRank(Technique):
    """Activation-aware SVD for linear layers and 1x1 convolutions, Tucker-2 for larger kernels.

    The output side projects on the leading directions of the *output's* covariance `W C W^T`, which is the SVD
    weighted by the input's second moment in closed form (no inverse is needed). The input side of Tucker-2 is
    whitened by the covariance of the channels, and the core between them is fitted again by least squares.
    """

    name: ClassVar[str] = "low_rank"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    summary: ClassVar[str] = "a chain of thin layers: fewer macs and bytes, more launches"
    source: ClassVar[str] = (
        "Zhang et al., Accelerating Very Deep Networks, 2016, section 3.1 (output side); "
        "Kim et al., Compression of Deep CNNs for Fast and Low Power Mobile Applications, 2016, section 3 (Tucker-2)"
    )

    ratio: float = choice(0.5, grid=(0.6, 0.4, 0.25), low=0.01, high=0.95, help="share of the layer's macs that remains")

    def unsupported(self, layer: nn.Module) -> str | None:
        if not isinstance(layer, WEIGHTED):
            return f"{type(layer).__name__} has no matrix to factor"
        if groups_of(layer) > 1:
            return "a grouped convolution is already small; its groups do not factor together"
        if min(self.ranks(layer)) < 2:
            return f"rank {self.ranks(layer)} at {self.ratio:g} of the macs is too low to be of use"
        return None

    def ranks(self, layer: nn.Module) -> tuple[int, ...]:
        """Returns the rank (pointwise) or the ranks on the input and the output side (Tucker-2)."""
        outputs, inputs = layer.weight.shape[:2]
        if is_pointwise(layer):
            return (_snapped(self.ratio * inputs * outputs / (inputs + outputs)),)
        # in*b*in + b*in*b*out*k + b*out*out = ratio * in*out*k, solved for b, the share of both sides.
        positions = layer.weight[0, 0].numel()
        square, linear = inputs * outputs * positions, inputs * inputs + outputs * outputs
        share = (-linear + (linear**2 + 4 * square * self.ratio * square) ** 0.5) / (2 * square)
        return _snapped(share * inputs), _snapped(share * outputs)

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        if is_pointwise(layer):
            return _factored(layer, statistics, *self.ranks(layer))
        return _tucker(layer, statistics, *self.ranks(layer))


def _snapped(rank: float) -> int:
    return int(rank) // STEP * STEP if rank >= 2 * STEP else int(rank)


def _leading(matrix: Tensor, count: int) -> Tensor:
    """Returns the `count` leading eigenvectors of a symmetric matrix as columns, signs fixed."""
    vectors = torch.linalg.eigh(matrix.double()).eigenvectors.flip(1)[:, :count]
    peak = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(peak < 0, -1.0, 1.0)


def _bias(layer: nn.Module, matrix: Tensor, approximation: Tensor, mean: Tensor) -> Tensor:
    shift = ((matrix - approximation) @ mean.double()).float()
    return shift if layer.bias is None else layer.bias.detach().float() + shift


def _factored(layer: nn.Module, statistics: LayerStatistics, rank: int) -> nn.Module:
    matrix = weight_matrices(layer)[0].double()
    basis = _leading(matrix @ damped(statistics.covariance)[0] @ matrix.T, rank)
    inner = basis.T @ matrix
    bias = _bias(layer, matrix, basis @ inner, statistics.mean[0])
    ones = (1,) * (layer.weight.dim() - 2)
    strides = {} if isinstance(layer, nn.Linear) else {"stride": layer.stride, "padding": layer.padding}
    return nn.Sequential(
        make_conv(layer, inner.reshape(*inner.shape, *ones), None, **strides),
        make_conv(layer, basis.reshape(*basis.shape, *ones), bias),
    )


def _tucker(layer: nn.Module, statistics: LayerStatistics, rank_in: int, rank_out: int) -> nn.Module:
    outputs, inputs = layer.weight.shape[:2]
    kernel = tuple(layer.weight.shape[2:])
    matrix = weight_matrices(layer)[0].double()
    positions = matrix.shape[1] // inputs
    covariance = damped(statistics.covariance)[0]
    # Input side: directions of the channels that matter to this layer, whitened by their own covariance.
    channel = covariance.view(inputs, positions, inputs, positions).diagonal(dim1=1, dim2=3).mean(-1)
    values, vectors = torch.linalg.eigh(channel)
    root = vectors * values.clamp(min=1e-12).sqrt() @ vectors.T
    by_channel = matrix.view(outputs, inputs, positions).permute(1, 0, 2).flatten(1)  # (in, out * positions)
    directions = _leading(root @ (by_channel @ by_channel.T) @ root, rank_in)
    project = directions.T @ torch.linalg.inv(root)  # (rank_in, in)
    # Core: least squares of the layer's output on the projected patch.
    wide = torch.kron(project.contiguous(), torch.eye(positions, dtype=torch.float64))
    cross = matrix @ covariance @ wide.T
    moment = wide @ covariance @ wide.T
    full_core = torch.linalg.solve(moment, cross.T).T  # (out, rank_in * positions)
    # Output side: the leading directions of what the core can still say.
    basis = _leading(full_core @ moment @ full_core.T, rank_out)
    core = basis.T @ full_core
    bias = _bias(layer, matrix, basis @ core @ wide, statistics.mean[0])
    ones = (1,) * len(kernel)
    return nn.Sequential(
        make_conv(layer, project.reshape(rank_in, inputs, *ones), None),
        make_conv(
            layer,
            core.reshape(rank_out, rank_in, *kernel),
            None,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            padding_mode=layer.padding_mode,
        ),
        make_conv(layer, basis.reshape(outputs, rank_out, *ones), bias),
    )
