"""The multiple-choice knapsack on the price list, solved as an integer program.

Source: HAWQ-V3 (Yao et al., 2021), section 3.4.
Departure: HAWQ-V3 minimises a perturbation under one budget. Here there are several ceilings; preferences, served by a
sweep over shadow prices of one mixed cost and by straightening the score's logarithms at the best plan so far; and
cuts that make later layers cheaper, priced around that plan.
"""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from plywise.agent.search.search_method import CountedSearch, SearchMethod, SearchResult
from plywise.env.prices.prices import Bools, Floats, Ints
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import Evaluator, PlanEstimator
from plywise.env.score.score import DROP_RATE, Array, Demands, score_plans

ROUNDS = 2
NODE_LIMIT = 5
GAP = 5e-3


class Knapsack(SearchMethod):
    """Minimises the sum of drops under ceilings on costs; scores candidates in the order of their estimates."""

    name = "knapsack"

    def search(self, evaluator: Evaluator, budget: int, seed: int) -> SearchResult:
        """Scores the best plans on paper until the budget is spent; the seed plays no part."""
        counted = CountedSearch(evaluator, budget)
        for plan in knapsack_plans(PlanEstimator(evaluator.table), evaluator.demand)[:budget]:
            counted.evaluate(plan.tolist())
        return counted.result()


def knapsack_plans(estimator: PlanEstimator, demand: Demand) -> Ints:
    """Returns distinct plans `(P, L)` from the best estimated score down."""
    demands, least = Demands.of([demand]), estimator.least()
    excess = (estimator.estimate(least)[0] / demands.ceilings).max(1)
    way_out = least[excess.argmin()]
    plans = _extend(least, estimator.priced(demands))
    plans = _extend(plans, _solve(estimator, demand, way_out, bound=True))
    for _ in range(ROUNDS):
        best = _sorted(estimator, demands, plans)[0]
        free = _solve(estimator, demand, best, bound=False)
        plans = _extend(plans, free)
        for plan in (best, *free):
            plans = _extend(plans, _solve(estimator, demand, plan, bound=True))
        if (_sorted(estimator, demands, plans)[0] == best).all():
            break
    return _sorted(estimator, demands, plans)


def _ceilings(prices: Array, rest: Array, demand: Demand) -> list[tuple[Array, float]]:
    """Returns each ceiling as costs `(L, K)` and what they may sum to."""
    pairs = enumerate(demand.ceilings)
    return [(prices[:, :, metric], ceiling - rest[metric]) for metric, ceiling in pairs if ceiling is not None]


def _prices_around(estimator: PlanEstimator, plan: Ints) -> tuple[Array, Array]:
    """Prices every slot as if all other layers kept their slots of a plan, later layers' changes included.

    Returns:
        Shares of the original's cost `(L, K, M)`, and the share `(M,)` that no slot changes.
    """
    stack, count, table = estimator.stack, estimator.table.num_layers, np.zeros(1, np.int64)
    padded = stack.padded(0, plan[None])
    kept, out = stack.states(table, padded)
    depth = np.arange(count)
    prices = stack.menu(np.zeros(count, np.int64), depth, kept[0, :count, 0], out[0, :count, 0]).astype(np.float64)
    leaders = np.flatnonzero(stack.prunes[0])
    if len(leaders):
        tried = np.repeat(padded, len(leaders) * stack.num_slots, 2).reshape(1, -1, len(leaders), stack.num_slots)
        tried[0, leaders, np.arange(len(leaders))] = np.arange(stack.num_slots)
        totals = stack.plan_costs(table, tried.reshape(1, count + 1, -1))[0].sum(0, dtype=np.float64)
        now = stack.plan_costs(table, padded)[0, :, 0].astype(np.float64)  # (L + 1, M)
        others = now.sum(0) - now[leaders]
        prices[leaders] = totals.reshape(len(leaders), stack.num_slots, -1) - others[:, None]
    return prices, stack.fixed[0]


def _solve(estimator: PlanEstimator, demand: Demand, around: Ints, bound: bool) -> Ints:
    """Returns the best plan `(1, L)` by prices around another plan, or `(0, L)` where no plan holds the ceilings.

    Args:
        estimator: holds the table.
        demand: ceilings and preferences.
        around: `(L,)` the plan at whose states slots are priced.
        bound: keep its channel cuts, so that the prices are exact; else the cuts are free and prices approximate.
    """
    table, demands = estimator.table, Demands.of([demand])
    prices, rest = _prices_around(estimator, around)
    ratios = estimator.estimate(around[None])[0][0]
    # The logarithms of the score, linearised at the plan, lie above it everywhere: no round loses ground.
    objective = demands.accuracy_weight * table.drop + prices @ (demands.weights[0] / ratios)
    legal = table.legal
    if bound:
        level = table.recipe_level
        legal = legal & (level == np.take_along_axis(level, around[:, None], 1))
    limits = _ceilings(prices, rest, demand)
    values = [objective, table.drop, *(cost for cost, _ in limits)]
    layer, slot = np.nonzero(_worth(legal, values))
    # The last unknown is by how many points the drop exceeds its ceiling; the score says what that costs.
    rows = [_row(cost[layer, slot], most, 0.0) for cost, most in limits]
    if demand.max_accuracy_drop is not None:
        rows.append(_row(table.drop[layer, slot], demand.max_accuracy_drop, -1.0))
    weights = np.append(objective[layer, slot], sum(demand.weights) * DROP_RATE)
    taken = _choose(layer, table.num_layers, weights, rows)
    return slot[taken].reshape(-1, table.num_layers)


def _row(cost: Array | Floats, most: float, excess: float) -> LinearConstraint:
    size = max(abs(most), 1e-3) / 100  # the solver's tolerance is absolute: rows of size 100 make it tight
    return LinearConstraint(np.append(cost, excess)[None] / size, -np.inf, most / size)


def _choose(layer: Ints, count: int, weights: Array, rows: list[LinearConstraint]) -> Ints:
    """Returns which slots make the least weight, one for each of `count` layers, or none at all."""
    size = len(layer)
    one_each = csr_array((np.ones(size), (layer, np.arange(size))), shape=(count, size + 1))
    solved = milp(
        weights,
        integrality=np.append(np.ones(size), 0),
        bounds=Bounds(0, np.append(np.ones(size), np.inf)),
        constraints=[LinearConstraint(one_each, 1.0, 1.0), *rows],
        # A limit of nodes, not of seconds: the same plans on a busy machine. Dominated slots are gone already, and
        # presolving what is left takes longer than it saves.
        options={"node_limit": NODE_LIMIT, "mip_rel_gap": GAP, "presolve": False},
    )
    return np.flatnonzero(solved.x[:-1] > 0.5) if solved.x is not None else np.zeros(0, np.int64)


def _worth(legal: Bools, values: list[Array | Floats]) -> Bools:
    """Slots that no other slot of their layer matches or beats in every value."""
    stacked = np.where(legal[..., None], np.stack(values, -1), np.inf)  # (L, K, V)
    above, below = stacked[:, :, None], stacked[:, None]
    beaten = (below <= above).all(-1) & ((below < above).any(-1) | np.tri(legal.shape[1], k=-1, dtype=bool))
    kept: Bools = legal & ~beaten.any(2)
    return kept


def _extend(plans: Ints, more: Ints) -> Ints:
    """Appends plans that are not there yet."""
    new = [plan for plan in more if not (plans == plan).all(1).any()]
    return np.concatenate([plans, np.array(new).reshape(-1, plans.shape[1])]).astype(np.int64)


def _sorted(estimator: PlanEstimator, demands: Demands, plans: Ints) -> Ints:
    """Sorts plans from the best estimated score down."""
    ratios, drops = estimator.estimate(plans)
    ranked: Ints = plans[np.argsort(-score_plans(demands, ratios, drops), kind="stable")]
    return ranked
