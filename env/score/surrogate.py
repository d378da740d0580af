"""What plans lose, as a mean and an uncertainty that every plan scored for real makes smaller.

With `d_l` the estimated drop of layer l, a plan's layers lose

    x = sum_l f_l d_l + sum_lm g_lm sqrt(d_l d_m),

where the factors `f_l` say what the estimates are off by (1 on average, with one error for the whole network and one
for each layer), and the pairwise terms `g_lm` how layers interact: disturbances add up squared, so two of them weigh
on each other by the geometric mean of their drops, in either direction (with l = m, a layer weighs more or less). The
plan loses what `plan_drop` makes of x. What is seen differs from it by what holds for this one plan only and by what
counting samples adds.

All errors are taken as normal, which makes this a Gaussian process over plans (Rasmussen and Williams, Gaussian
Processes for Machine Learning, 2006, sections 2.1 and 2.2), linearised at each plan; its covariances sum over all
pairs of layers without listing them. On some networks all errors are smaller, on others larger: one factor of all
variances is learned with them, which makes it a Student-t process (Shah, Wilson and Ghahramani, Student-t Processes as
Alternatives to Gaussian Processes, 2014, section 3).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from plywise.env.arrays import Doubles, Ints
from plywise.env.prices.prices import PriceTable
from plywise.env.score.evaluator import PlanEstimator
from plywise.env.score.plan_drop import drop_growth, plan_drop
from plywise.env.score.uncertainty import LAYER, NETWORK, counting_variance

PAIR = 0.3
"""Spread of the pairwise terms."""

PLAN = 0.25
"""Spread of the share by which layers interact in one plan and not in others. Of seven pairs of both spreads, what 80
plans each of four networks of digits lost is likeliest with these."""

WITNESSES = 10
"""Plans that must be seen for the common factor of all variances to be as much what they tell as the 1 before them. Of
4, 10 and 20, what 100 plans each of eight networks lost is likeliest with it."""

FACTORS = (0.25, 4.0)
"""Bounds of the factors, so that few plans cannot make a layer free or impossible."""


class Surrogate:
    """Estimates plans of one network; learns from outcomes.

    Attributes:
        prior: the price table as it was given.
    """

    def __init__(self, table: PriceTable) -> None:
        self.prior = table
        self._estimator = PlanEstimator(table)
        self._seen = np.zeros((0, table.num_layers))  # estimated drops by layer of the plans seen
        self._surprise = np.zeros(0)  # what each of them lost beyond the sum of these
        self._noise = np.zeros(0)
        self._root = np.zeros((0, 0))  # of the covariance of what was seen: lower triangular, times its transpose
        self._weights = np.zeros(0)
        self._scale = 1.0  # of all variances

    @property
    def table(self) -> PriceTable:
        """The price table with the drops that are expected now of single layers: pairs are not in it."""
        return replace(self.prior, drop=self.prior.drop * self._factors.astype(np.float32)[:, None])

    def observe(self, actions: Sequence[int], drop: float, seen: float = 1.0) -> None:
        """Learns what a plan, one slot a layer, really lost, points, on a share of the samples."""
        drops = self._by_layer(np.asarray(actions, np.int64)[None])
        (total,), (expected,), (slope,) = self._lost(drops)
        self._seen = np.concatenate([self._seen, drops])
        self._surprise = np.append(self._surprise, total + (drop - expected) / slope - drops.sum())
        self._noise = np.append(self._noise, self._noise_of(expected, seen) / slope**2)
        covariance = _shared(self._seen, self._seen) + np.diag(self._noise)
        self._root = cholesky(covariance, lower=True)
        halfway = self._halfway(self._surprise)
        self._weights = solve_triangular(self._root, halfway, lower=True, trans=1)
        self._scale = (WITNESSES + float(halfway @ halfway)) / (WITNESSES + len(halfway))

    def estimate(self, plans: Ints) -> tuple[Doubles, Doubles, Doubles]:
        """Returns what is expected of plans `(P, L)`.

        Returns:
            Costs as shares of the original's `(P, M)`; drops `(P,)` and their spreads `(P,)`, points.
        """
        return self._estimator.estimate(plans)[0], *self.expected(self._by_layer(plans))

    def expected(self, drops: Doubles) -> tuple[Doubles, Doubles]:
        """Returns the drops `(P,)` of plans whose layers lose `drops` `(P, L)` alone, and their spreads, points."""
        _, drop, slope = self._lost(drops)
        variance = (NETWORK**2 + PAIR**2) * drops.sum(1) ** 2 + LAYER**2 * np.square(drops).sum(1)
        variance -= np.square(self._halfway(_shared(self._seen, drops))).sum(0)
        variance = np.maximum(variance, 0.0) * slope**2 + self._noise_of(drop)
        return drop, np.sqrt(self._scale * variance)

    @property
    def _factors(self) -> Doubles:
        """What is expected of the factors, `(L,)`."""
        shared = NETWORK**2 * self._seen.sum(1)[:, None] + LAYER**2 * self._seen
        found: Doubles = np.clip(1.0 + self._weights @ shared, *FACTORS)
        return found

    def _lost(self, drops: Doubles) -> tuple[Doubles, Doubles, Doubles]:
        """Returns what layers `(P, L)` lose together `(P,)`, what plans do, and how fast that grows with the former."""
        least, most = (factor * drops.sum(1) for factor in FACTORS)
        total = np.clip(drops @ self._factors + _pairwise(drops, self._seen) @ self._weights, least, most)
        room = self.prior.accuracy - self.prior.chance
        return total, plan_drop(total, room), drop_growth(total, room)

    def _noise_of(self, drop: Doubles, seen: float = 1.0) -> Doubles:
        """Returns the variance of what a share of the samples shows of a drop that factors and pairwise terms tell."""
        variance: Doubles = counting_variance(drop, seen * self.prior.samples) + (PLAN * drop) ** 2
        return variance

    def _halfway(self, values: Doubles) -> Doubles:
        """Returns the root of the covariance, inverted, times `values` `(n,)` or `(n, k)`."""
        solved: Doubles = solve_triangular(self._root, values, lower=True)
        return solved

    def _by_layer(self, plans: Ints) -> Doubles:
        drops: Doubles = self.prior.drop[np.arange(plans.shape[1]), plans].astype(np.float64)
        return drops


def _shared(plans: Doubles, others: Doubles) -> Doubles:
    """Returns the covariance of what plans `(P, L)` and others `(N, L)` lose, `(P, N)`, but for noise."""
    found: Doubles = _linear(plans, others) + _pairwise(plans, others)
    return found


def _linear(plans: Doubles, others: Doubles) -> Doubles:
    """Returns what the errors of the estimates let plans `(P, L)` and others `(N, L)` have in common, `(P, N)`."""
    found: Doubles = NETWORK**2 * np.outer(plans.sum(1), others.sum(1)) + LAYER**2 * plans @ others.T
    return found


def _pairwise(plans: Doubles, others: Doubles) -> Doubles:
    """Does what `_linear` does, for the pairwise terms."""
    found: Doubles = PAIR**2 * np.square(np.sqrt(plans) @ np.sqrt(others).T)
    return found
