"""What plans lose, as a mean and an uncertainty that every plan scored for real makes smaller.

With `x = sum_l f_l d_l`, where `d_l` is the estimated drop of layer l and `f_l` what the estimates are off by there (1
on average, with one error for the whole network and one for each layer), a plan loses `x / (1 + x / room)`: small
drops add up, large ones cannot exceed the room above guessing. What is seen differs from it by how layers interact in
this one plan and by what counting images adds. This is Bayesian linear regression (Bishop, Pattern Recognition and
Machine Learning, 2006, section 3.3), straightened at each plan: the factors' posterior has a closed form.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from plywise.env.evaluator import PlanEstimator
from plywise.env.prices import Ints, PriceTable
from plywise.env.score import Array
from plywise.env.uncertainty import COUNTING, LAYER, NETWORK

LEAST_COUNTED = 0.05
"""Points whose spread of counting a plan has at least: images are won and lost where none is lost on balance."""

PLAN = 0.25
"""Spread of the share by which layers interact in one plan and not in others."""

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
        self._mean = np.ones(table.num_layers)
        self._covariance = NETWORK**2 + LAYER**2 * np.eye(table.num_layers)

    @property
    def table(self) -> PriceTable:
        """The price table with the drops that are expected now."""
        factors = np.clip(self._mean, *FACTORS).astype(np.float32)
        return replace(self.prior, drop=self.prior.drop * factors[:, None])

    def observe(self, actions: Sequence[int], drop: float) -> None:
        """Learns what a plan, one slot a layer, really lost, points."""
        shares = self._by_layer(np.asarray(actions, np.int64)[None])
        expected, slope = self._lost(shares)
        shares = shares[0] * slope[0]
        gain = self._covariance @ shares
        variance = shares @ gain + _noise(expected)[0]
        self._mean = self._mean + gain * (drop - expected[0]) / variance
        self._covariance = self._covariance - np.outer(gain, gain) / variance

    def estimate(self, plans: Ints) -> tuple[Array, Array, Array]:
        """Returns what is expected of plans `(P, L)`.

        Returns:
            Costs as shares of the original's `(P, M)`; drops `(P,)` and their spreads `(P,)`, points.
        """
        by_layer = self._by_layer(plans)
        drop, slope = self._lost(by_layer)
        by_layer *= slope[:, None]
        spread = np.sqrt(((by_layer @ self._covariance) * by_layer).sum(1) + _noise(drop))
        return self._estimator.estimate(plans)[0], drop, spread

    def _lost(self, by_layer: Array) -> tuple[Array, Array]:
        """Returns what plans lose `(P,)`, and how fast that grows with the sum over their layers."""
        room = self.prior.accuracy - self.prior.chance
        total = by_layer @ np.clip(self._mean, *FACTORS)
        share = 1.0 / (1.0 + total / max(room, LEAST_COUNTED))
        return total * share, share * share

    def _by_layer(self, plans: Ints) -> Array:
        drops: Array = self.prior.drop[np.arange(plans.shape[1]), plans].astype(np.float64)
        return drops


def _noise(drop: Array) -> Array:
    """Returns the variance of what is seen of a drop around what the layers' factors tell."""
    variance: Array = COUNTING**2 * np.maximum(drop, LEAST_COUNTED) + (PLAN * drop) ** 2
    return variance
