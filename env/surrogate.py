"""What plans lose, as a mean and an uncertainty that every plan scored for real makes smaller.

The drop that is seen is `sum_l f_l d_l` plus what counting images adds, where `d_l` is the estimated drop of layer l
and `f_l` what the estimates are off by there: 1 on average, with one error for the whole network and one for each
layer. This is Bayesian linear regression (Bishop, Pattern Recognition and Machine Learning, 2006, section 3.3): the
factors' posterior after each plan has a closed form.
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
        shares = self._by_layer(np.asarray(actions, np.int64)[None])[0]
        gain = self._covariance @ shares
        variance = shares @ gain + _counting(np.array([shares @ self._mean]))[0]
        self._mean = self._mean + gain * (drop - shares @ self._mean) / variance
        self._covariance = self._covariance - np.outer(gain, gain) / variance

    def estimate(self, plans: Ints) -> tuple[Array, Array, Array]:
        """Returns what is expected of plans `(P, L)`.

        Returns:
            Costs as shares of the original's `(P, M)`; drops `(P,)` and their spreads `(P,)`, points.
        """
        ratios, _ = self._estimator.estimate(plans)
        by_layer = self._by_layer(plans)
        room = self.prior.accuracy - self.prior.chance
        drop: Array = np.minimum(by_layer @ np.clip(self._mean, *FACTORS), room)
        spread = np.sqrt(((by_layer @ self._covariance) * by_layer).sum(1) + _counting(drop))
        return ratios, drop, spread

    def _by_layer(self, plans: Ints) -> Array:
        drops: Array = self.prior.drop[np.arange(plans.shape[1]), plans].astype(np.float64)
        return drops


def _counting(drop: Array) -> Array:
    variance: Array = COUNTING**2 * np.maximum(drop, LEAST_COUNTED)
    return variance
