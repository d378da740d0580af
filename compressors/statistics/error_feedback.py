"""Column-wise error feedback: what rounding one weight breaks, the weights still to come repair.

Source: Frantar et al., GPTQ (2023), section 3 and algorithm 1; the same update with a fixed mask is SparseGPT's
(Frantar and Alistarh, 2023, section 3.1). Departures: the metric is the covariance around the mean (the bias
absorbs the rest), columns go in order of falling variance, and all groups of a grouped convolution run at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from plywise.compressors.statistics.feature_blocks import FeatureBlocks

DAMPING = 0.01
"""Share of the mean variance that is added to the diagonal (GPTQ's `percdamp`)."""

BLOCK = 128
"""Columns after which the rest of the matrix is updated in one product."""

Rounding = Callable[[Tensor], Tensor]


def damped(covariance: Tensor, damping: float = DAMPING) -> Tensor:
    """Returns a well-conditioned float64 copy of `(groups, features, features)` covariances."""
    result = covariance.double().clone()
    diagonal = result.diagonal(dim1=-2, dim2=-1)
    level = diagonal.mean(-1, keepdim=True)
    diagonal += damping * torch.where(level > 0, level, torch.ones_like(level))
    return result


@dataclass(frozen=True, eq=False)
class ErrorFeedback:
    """How the error of each column spreads over the columns behind it, for one layer's inputs.

    Attributes:
        order: `(groups, features)` in which columns are rounded.
        spread: `(groups, features, features)`: row c holds what an error of one in column c (in order) takes from the
            columns behind it; ones on the diagonal.
    """

    order: Tensor
    spread: Tensor

    @classmethod
    def of(cls, covariance: Tensor) -> "ErrorFeedback":
        """Prepares the feedback from the covariance of the inputs `(groups, features, features)`."""
        order = covariance.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True)  # (groups, features)
        blocks = FeatureBlocks.of(covariance)
        if len(blocks.runs) > 1:
            each = zip(covariance, order, strict=True)
            return cls(order, torch.stack([_spread_by_blocks(*pair, blocks) for pair in each]))
        metric = damped(covariance).gather(1, order[:, :, None].expand_as(covariance))
        metric = metric.gather(2, order[:, None, :].expand_as(covariance))
        return cls(order, _spread(metric))

    def __call__(self, weights: Tensor, rounding: Rounding, mask: Tensor | None = None) -> Tensor:
        """Rounds matrices column by column.

        Args:
            weights: `(groups, rows, features)`.
            rounding: maps one column `(groups * rows,)` to its rounded values.
            mask: boolean like `weights`; where False the result is exactly zero.

        Returns:
            Rounded weights, float32, `(groups, rows, features)`.
        """
        # Columns first, so that each of them is one piece of memory.
        columns = self.order[:, :, None].expand(-1, -1, weights.shape[1])
        work = weights.float().transpose(1, 2).gather(1, columns)  # (groups, features, rows)
        kept = None if mask is None else mask.transpose(1, 2).gather(1, columns)
        rounded, errors = torch.empty_like(work), torch.empty_like(work)
        features = work.shape[1]
        for start in range(0, features, BLOCK):
            stop = min(start + BLOCK, features)
            block, spread = work[:, start:stop], self.spread[:, start:stop, start:stop, None]
            # Taken apart once: to slice takes longer than to compute.
            parts = (block, rounded[:, start:stop], errors[:, start:stop])
            for place, (column, value, error) in enumerate(zip(*(part.unbind(1) for part in parts), strict=True)):
                value.copy_(rounding(column.reshape(-1)).view_as(column))
                if kept is not None:
                    value *= kept[:, start + place]
                torch.sub(column, value, out=error)
                block[:, place + 1 :].addcmul_(spread[:, place, place + 1 :], error[:, None], value=-1)
            work[:, stop:] -= self.spread[:, start:stop, stop:].transpose(1, 2) @ errors[:, start:stop]
        return torch.empty_like(rounded).scatter_(1, columns, rounded).transpose(1, 2)


def _spread(metric: Tensor) -> Tensor:
    """Returns for well-conditioned metrics `(groups, features, features)` how errors spread, see `ErrorFeedback`."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(metric))
    factor = torch.linalg.cholesky(inverse, upper=True)
    spread: Tensor = (factor / factor.diagonal(dim1=-2, dim2=-1)[:, :, None]).float()
    return spread


def _spread_by_blocks(covariance: Tensor, order: Tensor, blocks: FeatureBlocks) -> Tensor:
    """Does what `_spread` does for one covariance `(features, features)`, block by block.

    Args:
        covariance: of the features as they are.
        order: `(features,)` in which columns are rounded.
        blocks: of the covariance.
    """
    metric = damped(covariance[None])[0]  # all blocks count for what is added
    result, place = torch.zeros_like(covariance), order.argsort()
    for run in blocks.runs:
        inside = order[place[run].sort().values]
        result[place[inside][:, None], place[inside]] = _spread(metric[inside][:, inside][None])[0]
    return result


def relative_output_error(before: Tensor, after: Tensor, covariance: Tensor) -> float:
    """Returns the squared error of the output relative to its variance, from the inputs' covariance.

    Args:
        before, after: `(groups, rows, features)`.
        covariance: `(groups, features, features)`.
    """

    # Both are measured in units of the largest weight, so that tiny and huge weights do not leave float32.
    unit = before.abs().max().clamp(min=torch.finfo(torch.float32).tiny).float()
    blocks = FeatureBlocks.of(covariance)

    def energy(matrix: Tensor) -> float:
        return float((blocks.times(matrix, covariance) * matrix).sum())

    before, after = before.float() / unit, after.float() / unit
    return max(0.0, energy(before - after)) / max(energy(before), 1e-30)
