"""What scores a plan: the protocol that every search method sees, and the evaluator that only reads prices."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from plywise.compressors.errors import ConfigurationError, DemandError
from plywise.env.arrays import Doubles, Ints
from plywise.env.prices.price_stack import NUM_METRICS, PriceStack
from plywise.env.prices.prices import METRICS, PriceTable
from plywise.env.score.demand import Demand
from plywise.env.score.least_plans import least_plans
from plywise.env.score.plan_drop import plan_drop
from plywise.env.score.score import Demands, Outcome, judge
from plywise.env.score.supply import metric_shares, supply_plans


class Evaluator(Protocol):
    """Scores plans for one network and one demand, and counts how often it was asked."""

    @property
    def table(self) -> PriceTable:
        """Prices of the network; estimates, free of charge."""

    @property
    def demand(self) -> Demand:
        """What is wanted."""

    @property
    def evaluations(self) -> int:
        """Calls of `evaluate` so far."""

    def evaluate(self, actions: Sequence[int]) -> Outcome:
        """Scores a plan, one slot per layer."""


class PlanEstimator:
    """Reads whole plans off one price table, upstream choices included.

    Attributes:
        table: the prices.
        stack: the same as a stack of one.
        room: points between the original and guessing.
    """

    def __init__(self, table: PriceTable) -> None:
        self.table = table
        self.stack = PriceStack([table])
        self.room = table.accuracy - table.chance
        self._index = np.zeros(1, np.int64)

    def estimate(self, plans: Ints) -> tuple[Doubles, Doubles]:
        """Returns costs as shares of the original's `(P, M)` and drops in points `(P,)` of plans `(P, L)`."""
        padded = self.stack.padded(0, plans)
        ratios: Doubles = self.stack.plan_costs(self._index, padded)[0].sum(0, dtype=np.float64) + self.stack.fixed[0]
        drops = np.take_along_axis(self.table.drop, plans.T, 1).sum(0, dtype=np.float64)
        return ratios, plan_drop(drops, self.room)

    def least(self) -> Ints:
        """Returns plans `(P, L)` that make each combination of costs small."""
        return least_plans(self.stack, 0)[:, : self.table.num_layers]

    def priced(self, demands: Demands) -> Ints:
        """Returns the plans of all shadow prices `(P, L)`: the knapsack's corners where slots may be split."""
        ones = np.ones((1, self.stack.num_layers + 1), np.float32)
        scale = np.repeat(ones[..., None], NUM_METRICS, 2)
        return supply_plans(self.stack, self._index, metric_shares(demands), ones, scale)[0, :-1].T

    def outcome(self, demand: Demand, ratios: Doubles, drop: Any) -> Outcome:
        """Returns the outcome of a plan from its estimates, ratios `(M,)`."""
        original = self.table.original.astype(np.float64)
        return judge(demand, original, ratios * original, float(drop))

    def check(self, actions: Sequence[int]) -> Ints:
        """Returns the plan as an array `(1, L)`.

        Raises:
            ConfigurationError: where it has another length or names a slot that is not legal.
        """
        plan = np.asarray(actions, np.int64)
        if plan.shape != (self.table.num_layers,):
            raise ConfigurationError(f"a plan of shape {plan.shape} for {self.table.num_layers} layers; give one each")
        for layer, slot in enumerate(plan.tolist()):
            if not 0 <= slot < self.table.num_slots or not self.table.legal[layer, slot]:
                legal = np.flatnonzero(self.table.legal[layer]).tolist()
                raise ConfigurationError(f"slot {slot} of layer {self.table.layers[layer]} is not one of {legal}")
        return plan[None]


class SurrogateEvaluator:
    """Scores plans from prices in microseconds; its figures are estimates and never results."""

    def __init__(self, table: PriceTable, demand: Demand) -> None:
        self.table = table
        self.demand = demand
        self.evaluations = 0
        self._estimator = PlanEstimator(table)

    def evaluate(self, actions: Sequence[int]) -> Outcome:
        """Returns the estimated outcome of a plan.

        Raises:
            ConfigurationError: where the plan does not fit the table.
        """
        ratios, drops = self._estimator.estimate(self._estimator.check(actions))
        self.evaluations += 1
        return self._estimator.outcome(self.demand, ratios[0], drops[0])


def check_demand(table: PriceTable, demand: Demand) -> None:
    """Refuses cost ceilings that no plan can hold; that of accuracy can always be held.

    Warns where no plan is known that holds all of them at once.

    Raises:
        DemandError: with the best reachable value of each ceiling that was set.
    """
    estimator, demands = PlanEstimator(table), Demands.of([demand])
    least, priced = (estimator.estimate(plans)[0] for plans in (estimator.least(), estimator.priced(demands)))
    asked = {name: ceiling for name, ceiling in zip(METRICS, demand.ceilings, strict=True) if ceiling is not None}
    held = np.concatenate([least, priced]) <= demands.ceilings
    if held.any(0).all():
        if not held.all(1).any():
            warnings.warn(
                f"{table.network}: each of {', '.join(f'max_{name}' for name in asked)} can be held, but no plan is "
                "known that holds all at once; what comes nearest may lose much accuracy",
                stacklevel=2,
            )
        return
    # Rounded up, so that the value given is one that can be held.
    reachable = {name: math.ceil(share * 1e4) / 1e4 for name, share in zip(METRICS, least.min(0).tolist(), strict=True)}
    lines = ", ".join(f"max_{name}={ceiling:g} (reachable: {reachable[name]:g})" for name, ceiling in asked.items())
    raise DemandError(f"no plan for {table.network} holds {lines}; raise the ceilings to what is reachable or above")
