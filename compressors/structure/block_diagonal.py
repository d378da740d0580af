"""Replaces a linear layer by blocks between two permutations."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from plywise.compressors.modules.channel_order import ChannelOrder, inverted
from plywise.compressors.modules.composition import Chain
from plywise.compressors.modules.grouped_linear import GroupedLinear
from plywise.compressors.modules.layers import (
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

ROUNDS = 20
"""Times that inputs and outputs are assigned to blocks in turn, at most; it settles sooner."""


STARTS = 4
"""Random starts alongside the spectral one."""


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
        if not is_pointwise(layer):
            return f"{type(layer).__name__} is not linear; blocks replace linear layers and 1x1 convolutions"
        if groups_of(layer) > 1:
            return "a grouped convolution is block-diagonal already"
        outputs, inputs = weight_of(layer).shape[:2]
        if outputs % self.blocks or inputs % self.blocks:
            return f"{self.blocks} blocks do not divide {inputs} inputs and {outputs} outputs"
        return None

    def outline(self, layer: nn.Module) -> nn.Sequential:
        """Returns a gather, a grouped layer and a gather."""
        outputs, inputs, *ones = weight_of(layer).shape
        # After a cut as many blocks as still divide both sides.
        blocks = math.gcd(self.blocks, outputs, inputs)
        axis = _axis(layer)
        if isinstance(layer, nn.Linear):
            with torch.device("meta"):
                middle: nn.Module = GroupedLinear(inputs, outputs, blocks).to(weight_of(layer).dtype)
        else:
            (settings,) = strided(layer, [ones])
            middle = outline_leaf(layer, (outputs, inputs // blocks, *ones), bias=True, groups=blocks, **settings)
        chain = Chain(ChannelOrder(range(inputs), axis), middle, ChannelOrder(range(outputs), axis))
        return chain.train(layer.training)

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns an `nn.Sequential` of a gather, a grouped layer and a gather."""
        matrix, covariance = weight_matrices(layer)[0].double(), damped(statistics.covariance)[0]
        unit = matrix.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        chain = self.outline(layer)
        blocks = groups_of(chain[1])
        rows, columns = self._orders((matrix / unit).square() * covariance.diagonal(), blocks)
        parts, shifts = [], []
        for row, column in zip(rows.chunk(blocks), columns.chunk(blocks), strict=True):
            inner, cross = covariance[column][:, column], matrix[row] @ covariance[:, column]
            part = torch.linalg.solve(inner, cross.T).T
            parts.append(part)
            shifts.append(matrix[row] @ statistics.mean[0].double() - part @ statistics.mean[0, column].double())
        shift, kept = torch.cat(shifts), bias_of(layer)
        bias = (shift if kept is None else kept[rows].double() + shift).float()
        axis = _axis(layer)
        chain[0], chain[2] = ChannelOrder(columns.tolist(), axis), ChannelOrder(inverted(rows).tolist(), axis)
        return filled(chain, [torch.cat(parts)], bias).train(layer.training)

    def _orders(self, energy: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
        """Returns rows and columns `(out,)`, `(in,)` in the order of their blocks."""
        generator = torch.Generator().manual_seed(0)
        if self.permutation == "random":
            rows, columns = (torch.randperm(size, generator=generator) for size in energy.shape)
            return rows, columns
        starts = [_seriated(energy), *(torch.randperm(energy.shape[1], generator=generator) for _ in range(STARTS))]
        found = [_settled(energy, start, blocks) for start in starts]
        return max(found, key=lambda orders: _held(energy, orders, blocks))


def _axis(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1


def _settled(energy: Tensor, columns: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    for _ in range(ROUNDS):
        before = columns
        rows = _assigned(energy[:, columns].view(len(energy), blocks, -1).sum(2))
        columns = _assigned(energy.T[:, rows].view(len(columns), blocks, -1).sum(2))
        if torch.equal(before, columns):
            break
    return rows, columns


def _held(energy: Tensor, orders: tuple[Tensor, Tensor], blocks: int) -> float:
    pairs = zip(*(order.chunk(blocks) for order in orders), strict=True)
    return sum(float(energy[row][:, column].sum()) for row, column in pairs)


def _assigned(gains: Tensor) -> Tensor:
    """Returns the members of the blocks, block after block, for the largest sum of `gains` `(members, blocks)`."""
    members, blocks = gains.shape
    slots = np.repeat(gains.numpy(), members // blocks, axis=1)
    place = torch.as_tensor(linear_sum_assignment(slots, maximize=True)[1]) // (members // blocks)
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
