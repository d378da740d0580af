"""The same recipe for all layers: what most people do by hand, and where every search starts."""

import numpy as np

from plywise.agent.search.search_method import CountedSearch, SearchMethod
from plywise.agent.search.uniform_plans import uniform_plans
from plywise.env.score.evaluator import PlanEstimator
from plywise.env.score.score import Demands, score_plans


class Uniform(SearchMethod):
    """Each recipe of the catalogue on every layer where it is legal; best estimates first."""

    name = "uniform"

    def look(self, counted: CountedSearch, seed: int) -> None:
        """Scores as many uniform plans as the budget allows; the seed plays no part."""
        plans = uniform_plans(counted.table)
        ratios, drops = PlanEstimator(counted.table).estimate(plans)
        scores = score_plans(Demands.of([counted.demand]), ratios, drops)
        for index in np.argsort(-scores, kind="stable"):
            if counted.spent:
                break
            counted.evaluate(plans[index].tolist())
