"""For each combination of costs, a plan that makes them as small as the price list allows, pruning included.

They say which ceilings can be reached at all, and they are the way out that the mask keeps open.
"""

from itertools import combinations

import numpy as np

from plywise.env.arrays import Floats, Ints
from plywise.env.prices.price_stack import LATENCY, NUM_METRICS, PriceStack

COMBINATIONS = tuple(
    chosen for count in range(1, NUM_METRICS + 1) for chosen in combinations(range(NUM_METRICS), count)
)
"""Indices of the metrics that each plan makes small: singles first, then pairs, then all."""
ROUNDS = 2


def least_plans(stack: PriceStack, index: int) -> Ints:
    """Returns plans `(J, L + 1)` of network `index`, one for each of COMBINATIONS.

    Coordinate descent on the mean share of the original's cost: first all layers that prune nothing, then for each
    group its level.
    """
    table = np.array([index])
    weight = np.zeros((len(COMBINATIONS), NUM_METRICS), np.float32)
    for row, chosen in enumerate(COMBINATIONS):
        weight[row, list(chosen)] = 1.0 / len(chosen)
    illegal = ~stack.legal[index]
    credit = (stack.base[index] - 0.5 * stack.saving[index]) @ weight.T  # (L + 1, K, J)
    plans = np.where(illegal[..., None], np.inf, credit).argmin(1)[None]  # (1, L + 1, J)
    for _ in range(ROUNDS):
        for leader in np.flatnonzero(stack.prunes[index]):
            plans = _best_level(stack, table, plans, int(leader), weight)
        own = _own_costs(stack, table, plans, weight)
        plans = np.where(stack.prunes[index][:, None], plans, own.argmin(-1))
    result: Ints = plans[0].T
    return result


def _own_costs(stack: PriceStack, table: Ints, plans: Ints, weight: Floats) -> Floats:
    """Weighted cost of every slot of every layer in the states that the plans lead to, `(1, L + 1, J, K)`."""
    kept, out = stack.states(table, plans)
    layer = np.arange(stack.num_layers + 1)[None, :, None]
    menu = stack.menu(table[:, None, None], layer, kept, out)  # (1, L + 1, J, K, M)
    menu[..., LATENCY] += stack.slot_borders(table, plans)
    cost = np.einsum("ljkm,jm->ljk", menu[0], weight)[None]
    return np.where(stack.legal[table][:, :, None], cost, np.float32(np.inf))


def _best_level(stack: PriceStack, table: Ints, plans: Ints, leader: int, weight: Floats) -> Ints:
    """Tries, for each plan, the cheapest slot of every level at one leader and keeps the best."""
    count, levels = plans.shape[2], stack.num_levels
    own = _own_costs(stack, table, plans, weight)[0, leader]  # (J, K)
    level = stack.slot_level[table[0], leader]
    of_level = np.where(level == np.arange(levels)[:, None], own[:, None], np.inf)  # (J, Q, K)
    slot = np.where(np.isinf(of_level.min(-1)), plans[0, leader][:, None], of_level.argmin(-1))  # (J, Q)
    tried = np.repeat(plans, levels, 2)  # (1, L + 1, J * Q)
    tried[0, leader] = slot.ravel()
    total = stack.plan_costs(table, tried).sum(1).reshape(count, levels, NUM_METRICS)
    best = np.einsum("jqm,jm->jq", total, weight).argmin(1)
    return tried.reshape(1, -1, count, levels)[:, :, np.arange(count), best]
