"""What can be had: how small each cost gets within the accuracy ceiling, by the price table and by exact scores."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from plywise.agent.search.knapsack import knapsack_plans
from plywise.compressors.errors import DemandError
from plywise.env.prices.prices import METRICS, PriceTable
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import PlanEstimator, check_demand
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


def scored_least(outcomes: Sequence[Outcome], demand: Demand) -> dict[str, float]:
    """Returns the least of each cost that has a ceiling, by name, among exact scores that hold the accuracy ceiling.

    Those of plans that were stopped early do not count; empty where none holds it.
    """
    most = np.inf if demand.max_accuracy_drop is None else demand.max_accuracy_drop + SLACK
    held = [outcome.ratios for outcome in outcomes if outcome.seen == 1.0 and outcome.drop <= most]
    asked = [place for place, ceiling in enumerate(demand.ceilings) if ceiling is not None]
    return {METRICS[place]: min(ratios[place] for ratios in held) for place in asked} if held else {}


def check_attainable(table: PriceTable, demand: Demand) -> str | None:
    """Refuses cost ceilings that no plan can hold, and says what can be had within the accuracy ceiling.

    Returns:
        What to tell where the price table expects that a ceiling is out of reach; None where it does not.

    Raises:
        DemandError: as `check_demand`.
    """
    found = attainable(Surrogate(table), demand)
    within = "" if demand.max_accuracy_drop is None else f"within a drop of {demand.max_accuracy_drop:g} points, "
    told = f"{within}the price table expects {', '.join(f'{name} of {each}' for name, each in found.items())}"
    try:
        check_demand(table, demand)
    except DemandError as error:
        raise DemandError(f"{error}; {told}, one at a time") from error
    ceilings = dict(zip(METRICS, demand.ceilings, strict=True))
    missed = [f"{name} of {ceilings[name]:g}" for name, each in found.items() if each.share > (ceilings[name] or 1.0)]
    return (
        f"{' and '.join(missed)} may be out of reach: {told}; the search looks for what is nearest" if missed else None
    )


def what_was_attainable(
    table: PriceTable, demand: Demand, scored: Sequence[tuple[Sequence[int], Outcome]]
) -> dict[str, dict[str, Any]]:
    """Returns for each cost that has a ceiling, by name, `share`, `low` and `high`, and `scored` where a plan held it.

    Args:
        table: the prices.
        demand: ceilings.
        scored: plans with their exact outcomes; the estimates have learned from them.
    """
    surrogate = Surrogate(table)
    for actions, outcome in scored:
        surrogate.observe(actions, outcome.drop, outcome.seen)
    least = scored_least([outcome for _, outcome in scored], demand)
    return {
        name: asdict(each) | ({"scored": least[name]} if name in least else {})
        for name, each in attainable(surrogate, demand).items()
    }
