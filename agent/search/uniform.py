"""The same recipe for all layers: what most people do by hand."""

import numpy as np

from plywise.agent.search.search_method import CountedSearch, SearchMethod, SearchResult
from plywise.env.prices.prices import Ints, PriceTable
from plywise.env.score.evaluator import Evaluator, PlanEstimator
from plywise.env.score.score import Demands, score_plans


class Uniform(SearchMethod):
    """Each recipe of the catalogue on every layer where it is legal, identity elsewhere; best estimates first."""

    name = "uniform"

    def search(self, evaluator: Evaluator, budget: int, seed: int) -> SearchResult:
        """Scores as many uniform plans as the budget allows; the seed plays no part."""
        counted = CountedSearch(evaluator, budget)
        plans = uniform_plans(evaluator.table)
        ratios, drops = PlanEstimator(evaluator.table).estimate(plans)
        scores = score_plans(Demands.of([evaluator.demand]), ratios, drops)
        for index in np.argsort(-scores, kind="stable")[:budget]:
            counted.evaluate(plans[index].tolist())
        return counted.result()


def uniform_plans(table: PriceTable) -> Ints:
    """Returns all distinct plans `(P, L)` with one recipe on every layer that allows it."""
    legal = [
        {recipe: slot for slot, recipe in reversed(list(enumerate(menu))) if allowed[slot]}
        for menu, allowed in zip(table.recipes, table.legal, strict=True)
    ]
    names = dict.fromkeys(recipe for menu in legal for recipe in menu)
    plans = np.array([[menu.get(name, 0) for menu in legal] for name in names])
    _, first = np.unique(plans, axis=0, return_index=True)
    distinct: Ints = plans[np.sort(first)]
    return distinct
