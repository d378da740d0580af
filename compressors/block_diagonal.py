"""Replaces a linear layer by blocks between two permutations."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from plywise.compressors.channel_order import ChannelOrder, inverted
from plywise.compressors.error_feedback import damped
from plywise.compressors.grouped_linear import GroupedLinear
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

ROUNDS = 20
"""Times that inputs and outputs are assigned to blocks in turn, at most; it settles sooner."""


STARTS = 4
"""Random starts beside the spectral one."""


@dataclass(frozen=True)
class BlockDiagonal(Technique):
    """`W = P_row^T blockdiag(...) P_col`: a gather, a grouped product and a gather.

    Inputs and outputs are assigned to blocks in turn, each time at the optimum (a linear assignment), so that the
    blocks hold most of what the layer says on its inputs; of a spectral and some random starts the best counts. Every
    block is then refitted by least squares: its inputs take over what the others said as far as they are correlated.
    """

    name: ClassVar[str] = "block_diagonal"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    summary: ClassVar[str] = "blocks between two gathers: macs and bytes by the number of blocks, for wide layers"
    source: ClassVar[str] = (
        "Supic et al., MPDCompress: Matrix Permutation Decomposition Algorithm for Deep Neural Network Compression, "
        "2018, section 2 (random permutations, the control)"
    )

    blocks: int = choice(2, grid=(2, 4), low=2, high=64, help="blocks on the diagonal; must divide both sides")
    permutation: str = choice("assigned", grid=("assigned", "random"), help="by what the blocks hold, or the control")

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses all but linear layers and 1x1 convolutions whose sides the blocks divide."""
        if not isinstance(layer, WEIGHTED) or not is_pointwise(layer):
            return f"{type(layer).__name__} is not linear; blocks replace linear layers and 1x1 convolutions"
        if groups_of(layer) > 1:
            return "a grouped convolution is block-diagonal already"
        outputs, inputs = weight_of(layer).shape[:2]
        if outputs % self.blocks or inputs % self.blocks:
            return f"{self.blocks} blocks do not divide {inputs} inputs and {outputs} outputs"
        return None

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns an `nn.Sequential` of a gather, a grouped layer and a gather."""
        matrix, covariance = weight_matrices(layer)[0].double(), damped(statistics.covariance)[0]
        unit = matrix.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        rows, columns = self._orders((matrix / unit).square() * covariance.diagonal())
        parts, shifts = [], []
        for row, column in zip(rows.chunk(self.blocks), columns.chunk(self.blocks), strict=True):
            inner, cross = covariance[column][:, column], matrix[row] @ covariance[:, column]
            part = torch.linalg.solve(inner, cross.T).T
            parts.append(part)
            shifts.append(matrix[row] @ statistics.mean[0].double() - part @ statistics.mean[0, column].double())
        shift, kept = torch.cat(shifts), bias_of(layer)
        bias = (shift if kept is None else kept[rows].double() + shift).float()
        axis = -1 if isinstance(layer, nn.Linear) else 1
        chain = nn.Sequential(
            ChannelOrder(columns.tolist(), axis),
            _grouped(layer, torch.cat(parts), bias, self.blocks),
            ChannelOrder(inverted(rows).tolist(), axis),
        )
        return chain.train(layer.training)

    def _orders(self, energy: Tensor) -> tuple[Tensor, Tensor]:
        """Returns rows and columns `(out,)`, `(in,)` in the order of their blocks."""
        generator = torch.Generator().manual_seed(0)
        if self.permutation == "random":
            rows, columns = (torch.randperm(size, generator=generator) for size in energy.shape)
            return rows, columns
        starts = [_seriated(energy), *(torch.randperm(energy.shape[1], generator=generator) for _ in range(STARTS))]
        found = [self._settled(energy, start) for start in starts]
        return max(found, key=lambda orders: self._held(energy, *orders))

    def _settled(self, energy: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(ROUNDS):
            before = columns
            rows = self._assigned(energy[:, columns].view(len(energy), self.blocks, -1).sum(2))
            columns = self._assigned(energy.T[:, rows].view(len(columns), self.blocks, -1).sum(2))
            if torch.equal(before, columns):
                break
        return rows, columns

    def _held(self, energy: Tensor, rows: Tensor, columns: Tensor) -> float:
        pairs = zip(rows.chunk(self.blocks), columns.chunk(self.blocks), strict=True)
        return sum(float(energy[row][:, column].sum()) for row, column in pairs)

    def _assigned(self, gains: Tensor) -> Tensor:
        """Returns the members of the blocks, block after block, for the largest sum of `gains` `(members, blocks)`."""
        members = len(gains)
        slots = np.repeat(gains.numpy(), members // self.blocks, axis=1)
        place = torch.as_tensor(linear_sum_assignment(slots, maximize=True)[1]) // (members // self.blocks)
        return place.argsort(stable=True)


def _seriated(energy: Tensor) -> Tensor:
    """Returns the columns so that those lie side by side which the same rows use (spectral seriation).

    Source: Dhillon, Co-clustering Documents and Words Using Bipartite Spectral Graph Partitioning, 2001, section 4.
    """
    tiny = 1e-12 * energy.max().clamp(min=1e-30)
    rows, columns = (energy.sum(axis).clamp(min=tiny).rsqrt() for axis in (1, 0))
    right = torch.linalg.svd(rows[:, None] * energy * columns, full_matrices=False).Vh
    order: Tensor = (right[min(1, len(right) - 1)] * columns).argsort(stable=True)
    return order


def _grouped(layer: nn.Module, weight: Tensor, bias: Tensor, blocks: int) -> nn.Module:
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        ones = (1,) * len(layer.kernel_size)
        settings = {name: getattr(layer, name) for name in ("stride", "padding", "padding_mode")}
        return make_layer(layer, weight.reshape(*weight.shape, *ones), bias, groups=blocks, **settings)
    dtype = weight_of(layer).dtype
    with torch.device("meta"):
        new = GroupedLinear(weight.shape[1] * blocks, len(weight), blocks)
    new.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    new.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return new.train(layer.training)
