"""What can be had: how small each cost gets within the accuracy ceiling, by the price table and by exact scores."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from plywise.agent.search.knapsack import knapsack_plans
from plywise.env.prices.prices import METRICS
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import PlanEstimator
from plywise.env.score.score import SLACK, Outcome
from plywise.env.score.surrogate import Surrogate

NEAR = (0.5, 1.0, 2.0)
"""Accuracy ceilings for which plans are looked for, as shares of the demand's: of plans near it the spread decides."""


@dataclass(frozen=True)
class Attainable:
    """The least of one cost within an accuracy ceiling, as estimated, in shares of the original's.

    Attributes:
        share: by the estimated drops.
        low, high: where drops turn out one standard deviation smaller, or larger, than estimated.
    """

    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"about {self.share:.3f} ({self.low:.3f} to {self.high:.3f})"


def attainable(surrogate: Surrogate, demand: Demand) -> dict[str, Attainable]:
    """Returns the least of each cost that has a ceiling, by name, one at a time.

    Args:
        surrogate: of the network; what it has learned from exact scores is used.
        demand: ceilings; without one on accuracy, the least of all.
    """
    asked = [name for name, ceiling in zip(METRICS, demand.ceilings, strict=True) if ceiling is not None]
    return {name: _least(surrogate, demand.max_accuracy_drop, name) for name in asked}


def _least(surrogate: Surrogate, most: float | None, name: str) -> Attainable:
    weights = {f"{metric}_weight": float(metric == name) for metric in METRICS}
    alone = Demand(None, accuracy_weight=1e-3, **weights)
    ceilings = [None] if most is None else [share * most for share in NEAR]
    estimator = PlanEstimator(surrogate.table)
    plans = [knapsack_plans(estimator, replace(alone, max_accuracy_drop=ceiling)) for ceiling in ceilings]
    ratios, drop, spread = surrogate.estimate(np.unique(np.concatenate(plans), axis=0))
    cost, limit = ratios[:, METRICS.index(name)], np.inf if most is None else most
    low, share, high = (
        float(np.min(cost, where=drop + sign * spread <= limit, initial=1.0)) for sign in (-1.0, 0.0, 1.0)
    )
    return Attainable(share, low, high)


def scored_least(outcomes: Iterable[Outcome], demand: Demand) -> Mapping[str, float]:
    """Returns the least of each cost that has a ceiling, by name, among exact scores that hold the accuracy ceiling.

    Those of plans that were stopped early do not count; empty where none holds it.
    """
    most = np.inf if demand.max_accuracy_drop is None else demand.max_accuracy_drop + SLACK
    held = [outcome.ratios for outcome in outcomes if outcome.seen == 1.0 and outcome.drop <= most]
    asked = [place for place, ceiling in enumerate(demand.ceilings) if ceiling is not None]
    return {METRICS[place]: min(ratios[place] for ratios in held) for place in asked} if held else {}
