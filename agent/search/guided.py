"""Local changes that the surrogate promises most of, from the plans of an integer program on what was learned."""

import numpy as np

from plywise.agent.search.knapsack import knapsack_plans
from plywise.agent.search.local_changes import improve
from plywise.agent.search.search_method import CountedSearch, SearchMethod
from plywise.env.arrays import Ints
from plywise.env.score.evaluator import PlanEstimator

STARTS = 4
"""Plans of the integer program that are scored first."""


class Guided(SearchMethod):
    """Scores the integer program's best plans, then what promises the largest improvement: see `local_changes.py`."""

    name = "guided"

    def look(self, counted: CountedSearch, seed: int) -> None:
        """Scores plans until the budget is spent or nothing new is left; `seed` decides which changes are tried."""

        def solved() -> Ints:
            return knapsack_plans(PlanEstimator(counted.surrogate.table), counted.demand)

        for plan in solved()[:STARTS].tolist():
            if not counted.spent:
                counted.evaluate(plan)
        improve(counted, solved, np.random.default_rng(seed))
