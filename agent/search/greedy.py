"""Mayo's search: one layer at a time, one step down its ladder, and back where accuracy breaks.

Zhao et al., "Mayo: A Framework for Auto-generating Hardware Friendly Deep Neural Networks" (2018), section 3.
Departure: Mayo goes by training accuracy and in the order of layers; here the evaluator's validation accuracy decides,
and the next layer is the one with the least estimated drop for what it saves.
"""

import numpy as np

from plywise.agent.search.search_method import CountedSearch, SearchMethod
from plywise.env.arrays import Doubles, Ints
from plywise.env.prices.prices import PriceTable
from plywise.env.score.score import Demands, Outcome
from plywise.env.score.supply import metric_shares

FIRST_STEP = 4


class Greedy(SearchMethod):
    """Steps down while the accuracy ceiling holds and the score rises or a cost ceiling is still broken."""

    name = "greedy"

    def look(self, counted: CountedSearch, seed: int) -> None:
        """Starts from the original; each layer's step is halved when it breaks something; the seed plays no part."""
        table = counted.table
        cost = _scalar_cost(table, metric_shares(Demands.of([counted.demand]))[0])
        ladders = [_ladder(cost[layer], table.drop[layer], table.legal[layer]) for layer in range(table.num_layers)]
        rung = np.zeros(table.num_layers, np.int64)
        step = np.full(table.num_layers, FIRST_STEP)
        here = counted.evaluate(_actions(ladders, rung))
        while not counted.spent:
            step = np.minimum(step, [len(ladder) - 1 - at for ladder, at in zip(ladders, rung, strict=True)])
            if not step.any():
                break
            layer = _cheapest(ladders, rung, step, cost, table)
            rung[layer] += step[layer]
            there = counted.evaluate(_actions(ladders, rung))
            if _accept(here, there):
                here = there
            else:
                rung[layer] -= step[layer]
                step[layer] //= 2


def _scalar_cost(table: PriceTable, shares: Doubles) -> Doubles:
    """Cost of each slot where nothing upstream was cut, share of the original's `(L, K)`."""
    ratios = table.cost[:, :, :, 0, 0] / table.original[:, None, None]
    mixed: Doubles = np.einsum("m,mlk->lk", shares, ratios)
    return mixed


def _ladder(cost: Doubles, drop: Doubles, legal: Doubles) -> Ints:
    """Slots from identity down, each cheaper than the one before, none beaten in both cost and drop by another."""
    rungs: list[int] = []
    least = np.inf
    for slot in np.lexsort((drop, cost)).tolist():  # from the cheapest up
        if legal[slot] and drop[slot] < least and cost[slot] < cost[0]:
            rungs.append(slot)
            least = drop[slot]
    return np.array([0, *reversed(rungs)])


def _actions(ladders: list[Ints], rung: Ints) -> list[int]:
    return [int(ladder[at]) for ladder, at in zip(ladders, rung, strict=True)]


def _cheapest(ladders: list[Ints], rung: Ints, step: Ints, cost: Doubles, table: PriceTable) -> int:
    """The layer whose next step loses least for what it saves."""
    rates = np.full(len(ladders), np.inf)
    for layer, ladder in enumerate(ladders):
        if step[layer]:
            now, then = ladder[rung[layer]], ladder[rung[layer] + step[layer]]
            lost = table.drop[layer, then] - table.drop[layer, now]
            rates[layer] = lost / (cost[layer, now] - cost[layer, then])
    return int(rates.argmin())


def _accept(here: Outcome, there: Outcome) -> bool:
    if "accuracy_drop" in there.violations or there.seen < 1.0:
        return False
    cost_broken = bool(here.violations.keys() - {"accuracy_drop"})
    return cost_broken or there.score > here.score
