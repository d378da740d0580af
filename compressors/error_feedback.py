"""Column-wise error feedback: what rounding one weight breaks, the weights still to come repair.

Source: Frantar et al., GPTQ (2023), section 3 and algorithm 1; the same update with a fixed mask is SparseGPT's
(Frantar and Alistarh, 2023, section 3.1). Departures: the metric is the covariance around the mean (the bias
absorbs the rest), columns go in order of falling variance, and all groups of a grouped convolution run at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

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


def error_feedback(weights: Tensor, covariance: Tensor, rounding: Rounding, mask: Tensor | None = None) -> Tensor:
    """Rounds matrices column by column, each error spread over the columns still to come.

    Args:
        weights: `(groups, rows, features)`.
        covariance: `(groups, features, features)` of the inputs.
        rounding: maps one column `(groups, rows)` to its rounded values.
        mask: boolean like `weights`; where False the result is exactly zero.

    Returns:
        Rounded weights, float32, `(groups, rows, features)`.
    """
    order = covariance.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True)  # (groups, features)
    columns = order[:, None, :].expand_as(weights)
    metric = damped(covariance).gather(1, order[:, :, None].expand_as(covariance))
    metric = metric.gather(2, order[:, None, :].expand_as(covariance))
    feedback = _inverse_factor(metric).float()
    work = weights.float().gather(2, columns)
    kept = None if mask is None else mask.gather(2, columns)
    rounded = torch.empty_like(work)
    features = work.shape[2]
    for start in range(0, features, BLOCK):
        stop = min(start + BLOCK, features)
        errors = torch.empty_like(work[:, :, start:stop])
        for column in range(start, stop):
            value = rounding(work[:, :, column])
            if kept is not None:
                value = value * kept[:, :, column]
            rounded[:, :, column] = value
            error = (work[:, :, column] - value) / feedback[:, None, column, column]
            work[:, :, column:stop] -= error[:, :, None] * feedback[:, None, column, column:stop]
            errors[:, :, column - start] = error
        work[:, :, stop:] -= errors @ feedback[:, start:stop, stop:]
    return torch.empty_like(rounded).scatter_(2, columns, rounded)


def _inverse_factor(metric: Tensor) -> Tensor:
    """Returns the upper Cholesky factor of the inverse of `(groups, features, features)`."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(metric))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def relative_output_error(before: Tensor, after: Tensor, covariance: Tensor) -> float:
    """Returns the squared error of the output relative to its variance, from the inputs' covariance.

    Args:
        before, after: `(groups, rows, features)`.
        covariance: `(groups, features, features)`.
    """

    # Both are measured in units of the largest weight, so that tiny and huge weights do not leave float32.
    unit = before.abs().max().clamp(min=torch.finfo(torch.float32).tiny).float()

    def energy(matrix: Tensor) -> float:
        return float(((matrix @ covariance) * matrix).sum())

    before, after = before.float() / unit, after.float() / unit
    return max(0.0, energy(before - after)) / max(energy(before), 1e-30)
