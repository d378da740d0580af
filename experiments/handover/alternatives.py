"""What else there was: the plans that were scored beside their estimates, and the runner-up of each layer."""

import math
from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np

from plywise.agent.search.front import unbeaten
from plywise.compressors.recipes.plan import Plan
from plywise.env.arrays import Doubles, Ints
from plywise.env.prices.prices import METRICS, PriceTable
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import PlanEstimator
from plywise.env.score.score import Demands, Outcome, expected_scores, judge
from plywise.env.score.surrogate import Surrogate
from plywise.env.subject import Subject
from plywise.experiments.handover.files import told

Scored = tuple[tuple[int, ...], Outcome]
"""A plan, one slot a layer, and how it came out."""

SAME = 1e-7
"""Shares and points that tell no two plans apart."""


class Alternatives:
    """Estimates around one plan, by a surrogate that has learned from every plan that was scored.

    Attributes:
        scored: for the report, a row for each plan that was scored.
    """

    def __init__(self, subject: Subject, plan: Plan, demand: Demand, scored: Sequence[Scored], uniform: int) -> None:
        """Goes through what was scored once more, so that each estimate is the one from before its plan was scored.

        Args:
            subject: the network under study.
            plan: what was chosen, or given.
            demand: what was wanted.
            scored: by the search, in that order; empty where the plan was given: it is looked at here, then.
            uniform: how many of them, the first ones, are uniform plans that the search started from.
        """
        self._table, self._demand = subject.price(), demand
        self._surrogate = Surrogate(self._table)
        self._chosen = slots_of(self._table, plan)
        kinds = ["uniform"] * uniform + ["searched"] * (len(scored) - uniform)
        self.scored: list[dict[str, Any]] = []
        if scored:
            for kind, (slots, outcome) in zip(kinds, scored, strict=True):
                self._add(kind, slots, outcome)
        else:
            found = subject.measure(plan)
            drop = subject.accuracy - found.accuracy
            self._add("given", self._chosen, judge(demand, self._table.original, found.cost, drop))

    def front(self) -> list[dict[str, Any]]:
        """Returns the plans that are estimated best, from careful to small, without those that another one beats."""
        plans = np.unique(PlanEstimator(self._table).priced(Demands.of([self._demand])), axis=0)
        rows = [self._estimate(plan) for plan in plans]
        good = unbeaten([[row["accuracy_drop"], *(row[name] for name in METRICS)] for row in rows])
        return sorted(compress(rows, good), key=lambda row: float(row["accuracy_drop"]))

    def runner_up(self, layer: int) -> dict[str, Any] | None:
        """Returns the next best recipe of a layer, where another plan comes of it, and by how much; None without one.

        It is the one of the best expected score where all other layers keep theirs. Differences are estimates of the
        whole plan: shares of the original's, points of accuracy drop, score.

        Args:
            layer: in the order of the walk.
        """
        if self._chosen is None:
            return None
        others = np.flatnonzero(self._table.legal[layer])
        others = others[others != self._chosen[layer]]
        if not len(others):
            return None
        plans = np.tile(np.array(self._chosen), (len(others) + 1, 1))
        plans[1:, layer] = others
        ratios, drops, scores = self._expected(plans)
        change = np.column_stack([ratios, drops])[1:] - [*ratios[0], drops[0]]
        differs = np.abs(change).max(1) > SAME  # two ratios may leave as many channels
        if not differs.any():
            return None
        best = int(np.where(differs, scores[1:], -np.inf).argmax())
        return {
            "recipe": self._table.recipes[layer][others[best]],
            **{name: float(value) for name, value in zip((*METRICS, "accuracy_drop"), change[best], strict=True)},
            "score": told(scores[best + 1] - scores[0]),
        }

    def _expected(self, plans: Ints) -> tuple[Doubles, Doubles, Doubles]:
        """Returns costs as shares `(P, M)`, drops and expected scores `(P,)` of plans `(P, L)`."""
        ratios, drops, spreads = self._surrogate.estimate(plans)
        return ratios, drops, expected_scores(Demands.of([self._demand]), ratios, drops, spreads)

    def _add(self, kind: str, slots: Sequence[int] | None, outcome: Outcome) -> None:
        row: dict[str, Any] = {
            "kind": kind,
            **{name: told(value) for name, value in zip(METRICS, outcome.ratios, strict=True)},
            "accuracy_drop": told(outcome.drop),
            "score": told(outcome.score),
            "demand_met": outcome.demand_met,
            "seen": outcome.seen,
            "chosen": slots == self._chosen,
        }
        if slots is not None:
            written = {menu[slot] for menu, slot in zip(self._table.recipes, slots, strict=True)}
            if kind == "uniform":  # layers that cannot take all of it have a shorter one
                row["recipe"] = max(written, key=len)
            row["estimated"] = self._estimate(np.array(slots))
            if math.isfinite(outcome.drop):
                self._surrogate.observe(slots, outcome.drop, outcome.seen)
        self.scored.append(row)

    def _estimate(self, plan: Ints) -> dict[str, float]:
        (ratios,), (drop,), (spread,) = self._surrogate.estimate(plan[None])
        shares = {name: float(value) for name, value in zip(METRICS, ratios, strict=True)}
        return {**shares, "accuracy_drop": float(drop), "spread": float(spread)}


def slots_of(table: PriceTable, plan: Plan) -> tuple[int, ...] | None:
    """Returns a plan as slots of the price table; None where one of its recipes is not on it."""
    recipes = [str(plan[layer]) for layer in table.layers]
    if not all(recipe in menu for recipe, menu in zip(recipes, table.recipes, strict=True)):
        return None
    return tuple(menu.index(recipe) for recipe, menu in zip(recipes, table.recipes, strict=True))
