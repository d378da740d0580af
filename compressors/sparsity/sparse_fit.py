"""Least output error under a pattern of zeros: which weights stay, and what they become.

What stays is refitted exactly: with the zeros fixed, the output error is a quadratic form of the other weights, and
conjugate gradients find its minimum for all rows at once, whatever zeros each row has. Which weights stay is a hard
problem; the alternating direction method of multipliers finds good solutions for any pattern, while zeros are demanded
little by little. On 3x3 layers of ResNet-20 it equals sixteen rounds of Optimal Brain Surgeon with exact inverses of
every row, in a twenty-fifth of the time.

Source: Boža, Fast and Effective Weight Update for Pruned Large Language Models, TMLR 2024, sections 3.1 to 3.3.
Departures: the kept weights are refitted to convergence at the end, and several step sizes compete.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from plywise.compressors.statistics.error_feedback import damped, relative_output_error
from plywise.compressors.statistics.feature_blocks import FeatureBlocks

Selection = Callable[[Tensor, float], Tensor]
"""Maps scores `(groups, rows, features)` to which of them stay (boolean); the number from 0 to 1 says how much of the
pattern is demanded: 0 nothing, 1 all of it."""

Metric = Callable[[Tensor], Tensor]
"""Multiplies `(groups, rows, features)` by a matrix `(groups, features, features)`."""

PENALTIES = (0.1, 1.0)
"""Weights of the pattern against the output error: small ones suit few features, large ones suit many."""
STEPS = 30
"""Alternations; over the first half of them the demanded zeros rise from none to all."""
REFIT_STEPS = 60


@dataclass(frozen=True, eq=False)
class SparseFit:
    """Weights and the metric of their output error, both scaled so that every input has unit variance.

    Attributes:
        target: `(groups, rows, features)` float32, largest weight of about one before scaling.
        metric: `(groups, features, features)` float32, damped covariance with ones on its diagonal.
        scale: like `target`; divides scaled weights to give those of the layer.
        blocks: of the metric.
    """

    target: Tensor
    metric: Tensor
    scale: Tensor
    blocks: FeatureBlocks

    @classmethod
    def of(cls, weights: Tensor, covariance: Tensor) -> "SparseFit":
        """Scales `(groups, rows, features)` weights whose inputs have `(groups, features, features)` covariances."""
        unit = weights.abs().max()
        unit = unit if unit > 0 else torch.ones_like(unit)
        metric = damped(covariance)
        deviation = metric.diagonal(dim1=-2, dim2=-1).sqrt()
        metric = metric / (deviation[:, :, None] * deviation[:, None, :])
        target = (weights.float() / unit).double() * deviation[:, None]
        blocks = FeatureBlocks.of(covariance)
        return cls(target.float(), metric.float(), deviation[:, None] / unit.double(), blocks)

    def refit(self, mask: Tensor) -> Tensor:
        """Returns the layer's weights of least output error that are zero where `mask` is False."""
        weights = self.target * mask
        residual = self._drawn(self.target - weights) * mask
        enough = 1e-10 * self.target.square().sum(-1, keepdim=True)
        change = descended(self._drawn, residual, mask, REFIT_STEPS, enough)
        return self._unscaled((weights + change) * mask)

    def masks(self, select: Selection) -> Iterable[Tensor]:
        """Yields candidates for what should stay: by the scaled magnitudes, then by alternation."""
        yield select(self.target.abs(), 1.0)
        identity = torch.eye(self.metric.shape[-1], dtype=torch.float64)
        drawn = self._drawn(self.target)
        for penalty in PENALTIES:
            inverse = self.blocks.inverse(self.metric.double() + penalty * identity).float()
            weights, multiplier = self.target, torch.zeros_like(self.target)
            for step in range(1, STEPS + 1):
                shifted = weights + multiplier
                mask = select(shifted.abs(), min(1.0, 2 * step / STEPS))
                sparse = shifted * mask
                multiplier = shifted - sparse
                weights = self.blocks.times(drawn + penalty * (sparse - multiplier), inverse)
            yield mask

    def _drawn(self, weights: Tensor) -> Tensor:
        return self.blocks.times(weights, self.metric)

    def _unscaled(self, weights: Tensor) -> Tensor:
        return (weights.double() / self.scale).float()


def descended(metric: Metric, gradient: Tensor, mask: Tensor, steps: int, enough: Tensor) -> Tensor:
    """Returns the change of weights that lowers a quadratic form most, by conjugate gradients for all rows at once.

    Args:
        metric: positive definite, with ones on its diagonal.
        gradient: `(groups, rows, features)` in which the form falls; zero where `mask` is False.
        mask: boolean like `gradient`: which weights may change.
        steps: at most.
        enough: `(groups, rows, 1)` squared length of the gradient at which a row is done.
    """
    change, residual = torch.zeros_like(gradient), gradient
    direction, energy = residual, residual.square().sum(-1, keepdim=True)
    for _ in range(steps):
        moving = energy > enough
        if not bool(moving.any()):
            break
        image = metric(direction) * mask
        step = torch.where(moving, energy / (direction * image).sum(-1, keepdim=True), 0.0)
        change = change + step * direction
        residual = residual - step * image
        previous, energy = energy, residual.square().sum(-1, keepdim=True)
        direction = residual + torch.where(moving, energy / previous, 0.0) * direction
    return change


def best_sparse_fit(weights: Tensor, covariance: Tensor, select: Selection) -> Tensor:
    """Returns float32 weights `(groups, rows, features)` with the zeros that `select` demands and little output error.

    Never worse than the exact refit of what `select` takes from the scaled magnitudes.

    Args:
        weights: `(groups, rows, features)`.
        covariance: of the inputs, `(groups, features, features)`.
        select: the pattern of zeros.
    """
    fit = SparseFit.of(weights, covariance)
    return least_error(weights, covariance, (fit.refit(mask) for mask in fit.masks(select)))


def least_error(weights: Tensor, covariance: Tensor, candidates: Iterable[Tensor]) -> Tensor:
    """Returns the candidate for `weights` with the least output error; the first among equals."""
    return min(candidates, key=lambda candidate: relative_output_error(weights, candidate, covariance))
