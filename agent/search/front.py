"""The front of one network: plans that no other one beats in all of accuracy, bytes, latency and energy.

One search for many demands: each says how many points may be lost and which cost counts, and the plan is scored next
that promises the largest sum of improvements over all of them. Source: the R2 indicator, which measures a front by a
set of scalarising functions (Brockhoff, Wagner and Trautmann, On the Properties of the R2 Indicator, 2012), with the
expected improvement of each as in `local_changes.py`. The scalarising functions are the demands' scores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.agent.search.agent_search import SIDE_BY_SIDE, walk
from plywise.agent.search.knapsack import knapsack_plans
from plywise.agent.search.local_changes import NEIGHBOURS, expected_improvements, neighbours
from plywise.agent.search.uniform_plans import uniform_plans
from plywise.env.arrays import Bools, Doubles, Ints
from plywise.env.prices.prices import METRICS, PriceTable
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import Evaluator, PlanEstimator
from plywise.env.score.score import Demands, Outcome, score_of
from plywise.env.score.surrogate import Surrogate

DROPS = (0.2, 0.1, 0.4, 1.0)
"""Ceilings on the points lost, as shares of the most that is looked at, in the order in which they are first served."""

COUNTED = (("storage", "latency"), ("storage",), ("latency",), ("energy",))
"""Costs that count, a demand each with every ceiling."""

POINT = 0.05
"""What a point of accuracy is worth beside a factor e of the costs: little, the ceilings say what may be lost."""

POOL = 2048
"""Plans that are kept to choose from."""


@dataclass(frozen=True)
class FrontPoint:
    """A plan that was scored exactly.

    Attributes:
        actions: one slot of the price table for each layer.
        found_by: who proposed it.
        outcome: what it costs and loses.
    """

    actions: tuple[int, ...]
    found_by: str
    outcome: Outcome


def front_demands(max_drop: float) -> list[Demand]:
    """Returns the demands that a front up to a drop, in points, is made of; those that matter most come first."""
    return [
        Demand(
            share * max_drop,
            accuracy_weight=POINT,
            **{f"{metric}_weight": 1.0 / len(counted) if metric in counted else 0.0 for metric in METRICS},
        )
        for share, counted in product(DROPS, COUNTED)
    ]


class FrontSearch:
    """Looks for the front within a budget of exact scores.

    Attributes:
        surrogate: has learned from all plans that were scored.
    """

    def __init__(self, evaluator: Evaluator, max_drop: float, agent: RecipeAgent | None = None) -> None:
        """Prepares; nothing is scored yet.

        Args:
            evaluator: gives costs and drops of plans; what it makes of its demand plays no part.
            max_drop: points; what loses more is not looked for.
            agent: walks too, where there is one.
        """
        self.surrogate = Surrogate(evaluator.table)
        self._evaluator, self._agent = evaluator, agent
        self._demands = front_demands(max_drop)
        self._original = np.zeros(evaluator.table.num_layers, np.int64)
        self._best = [0.0] * len(self._demands)  # scores so far: the original saves and loses nothing
        self._parents = np.repeat(self._original[None], len(self._demands), 0)
        self._seen: set[tuple[int, ...]] = {tuple(self._original.tolist())}
        self._sources: dict[tuple[int, ...], str] = {}

    def points(self, budget: int, seed: int) -> Iterator[FrontPoint]:
        """Yields plans as they are scored.

        Args:
            budget: how many, at most.
            seed: of every random choice.
        """
        generator = np.random.default_rng(seed)
        table = self._evaluator.table
        pool = self._from("uniform", uniform_plans(table, formats_only=True))
        for turn in range(budget):
            demand = self._demands[turn % len(self._demands)]
            solved = self._from("knapsack", knapsack_plans(PlanEstimator(self.surrogate.table), demand)[:NEIGHBOURS])
            changed = self._from("local change", neighbours(table, self._parents, NEIGHBOURS, generator))
            pool = np.concatenate([pool, solved, self._walked(demand, generator), changed])
            pool = np.unique(pool, axis=0)
            pool = pool[np.argsort(-self._promise(pool), kind="stable")][:POOL]
            plan = next((plan for plan in map(tuple, pool.tolist()) if plan not in self._seen), None)
            if plan is None:
                return
            yield self._score(plan)

    def learn(self, actions: Sequence[int]) -> None:
        """Scores a plan besides the budget, so that the search starts from it."""
        self._from("given", np.asarray([actions], np.int64))
        self._score(tuple(int(action) for action in actions))

    def _score(self, plan: tuple[int, ...]) -> FrontPoint:
        outcome = self._evaluator.evaluate(plan)
        self._seen.add(plan)
        self.surrogate.observe(plan, outcome.drop, outcome.seen)
        for place, demand in enumerate(self._demands):
            score = score_of(demand, outcome.ratios, outcome.drop)
            if score > self._best[place]:
                self._best[place], self._parents[place] = score, plan
        return FrontPoint(plan, self._sources[plan], outcome)

    def _promise(self, plans: Ints) -> Doubles:
        estimates = self.surrogate.estimate(plans)
        gains = (
            expected_improvements(Demands.of([demand]), *estimates, best)
            for demand, best in zip(self._demands, self._best, strict=True)
        )
        found: Doubles = np.sum(list(gains), axis=0)
        return found

    def _walked(self, demand: Demand, generator: np.random.Generator) -> Ints:
        if self._agent is None:
            return self._original[None]
        plans = walk(self._agent, self.surrogate, demand, SIDE_BY_SIDE, generator)
        return self._from("agent", np.array(plans, np.int64))

    def _from(self, source: str, plans: Ints) -> Ints:
        """Returns plans as they are, and keeps in mind who was the first to propose each."""
        for plan in map(tuple, plans.tolist()):
            self._sources.setdefault(plan, source)
        return plans


def unbeaten(costs: Sequence[Sequence[float]]) -> Bools:
    """Returns which rows `(n, d)` no other one matches or beats in every column; of equal rows the first.

    Less is better. Rows that are no numbers are beaten.
    """
    table = np.asarray(costs, float).reshape(len(costs), -1 if len(costs) else 0)
    as_good = (table[:, None] <= table).all(-1)  # [a, b]: a is at least as good as b
    better = as_good & ((table[:, None] < table).any(-1) | np.tri(len(table), k=-1, dtype=bool).T)
    found: Bools = ~better.any(0) & np.isfinite(table).all(1)
    return found


def knee(costs: Sequence[float], drops: Sequence[float]) -> int:
    """Returns the place of the point from which on every further saving costs most: the farthest from the ends' chord.

    Source: Satopaa, Albrecht, Irwin and Raghavan, Finding a "Kneedle" in a Haystack, 2011, with both axes scaled to
    the range that the points span.

    Args:
        costs: `(n,)` shares of the original's, at least one; taken by their logarithms.
        drops: `(n,)` points lost.
    """
    saved, lost = -np.log(np.asarray(costs, float)), np.asarray(drops, float)
    spans = [np.ptp(each) or 1.0 for each in (saved, lost)]
    gain = (saved - saved.min()) / spans[0] - (lost - lost.min()) / spans[1]
    return int(gain.argmax())


def table_front(table: PriceTable, max_drop: float) -> tuple[Doubles, Doubles, Doubles]:
    """Returns what the price table alone says of a front: costs `(P, M)`, drops and their spreads `(P,)`.

    Args:
        table: the prices.
        max_drop: points.
    """
    surrogate = Surrogate(table)
    plans = np.concatenate([knapsack_plans(PlanEstimator(table), demand) for demand in front_demands(max_drop)])
    return surrogate.estimate(np.unique(plans, axis=0))
