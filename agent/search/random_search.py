"""Random plans: the bar that every other method has to pass."""

import numpy as np

from plywise.agent.search.search_method import CountedSearch, SearchMethod
from plywise.env.prices.price_stack import PriceStack
from plywise.env.score.demand import Demand
from plywise.env.score.score import Demands
from plywise.env.walk.walk import Walks

BATCH = 32


class RandomSearch(SearchMethod):
    """Walks that pick evenly among the allowed slots."""

    name = "random"

    def look(self, counted: CountedSearch, seed: int) -> None:
        """Scores random plans until the budget is spent, or until a batch of them brings nothing new."""
        generator = np.random.default_rng(seed)
        walks = Walks(PriceStack([counted.table]), BATCH)
        while not counted.spent:
            before = counted.evaluations
            for plan in self._walk(walks, counted.demand, generator):
                if not counted.spent:
                    counted.evaluate(plan)
            if counted.evaluations == before:
                break

    def _walk(self, walks: Walks, demand: Demand, generator: np.random.Generator) -> np.ndarray:
        rows = np.arange(BATCH)
        walks.place(rows, np.zeros(BATCH, np.int64))
        walks.start(rows, Demands.of([demand] * BATCH))
        while not walks.done[0]:
            masks = walks.outlook.masks
            walks.step((masks * generator.random(masks.shape)).argmax(1))
        return walks.state.actions
