"""The multiple-choice knapsack on the price list, solved as an integer program.

Source: HAWQ-V3 (Yao et al., 2021), section 3.4.
Departures: HAWQ-V3 minimises a perturbation under one budget. Here there are several ceilings; preferences, served by a
sweep over shadow prices of one mixed cost and by linearising the score's logarithms at the best plan so far; cuts that
make later layers cheaper, priced around that plan; and borders, where one layer computes on integers and the one that
it reads on floats: an unknown each, which is at least the difference of the two.
"""

import math

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from plywise.agent.search.search_method import CountedSearch, SearchMethod
from plywise.agent.search.solver_output import without_solver_output
from plywise.agent.search.uniform_plans import uniform_plans
from plywise.env.arrays import Bools, Doubles, Floats, Ints
from plywise.env.prices.price_stack import LATENCY
from plywise.env.prices.prices import PriceTable
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import PlanEstimator
from plywise.env.score.plan_drop import most_total
from plywise.env.score.score import DROP_RATE, Demands, score_plans

ROUNDS = 2
NODE_LIMIT = 5
GAP = 5e-3


class Knapsack(SearchMethod):
    """Minimises the sum of drops under ceilings on costs; scores candidates in the order of their estimates."""

    name = "knapsack"

    def look(self, counted: CountedSearch, seed: int) -> None:
        """Scores the best plans on paper until the budget is spent; the seed plays no part."""
        for plan in knapsack_plans(PlanEstimator(counted.table), counted.demand):
            if counted.spent:
                break
            counted.evaluate(plan.tolist())


def knapsack_plans(estimator: PlanEstimator, demand: Demand) -> Ints:
    """Returns distinct plans `(P, L)` from the best estimated score down."""
    demands, least = Demands.of([demand]), estimator.least()
    excess = (estimator.estimate(least)[0] / demands.ceilings).max(1)
    way_out = least[excess.argmin()]
    plans = _extend(least, estimator.priced(demands))
    plans = _extend(plans, uniform_plans(estimator.table, formats_only=True))
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


def _prices_around(estimator: PlanEstimator, plan: Ints) -> Doubles:
    """Prices every slot as if all other layers kept their slots of a plan, later layers' changes included.

    Returns:
        Shares of the original's cost `(L, K, M)`, without borders.
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
        totals = stack.layer_costs(table, tried.reshape(1, count + 1, -1))[0].sum(0, dtype=np.float64)
        now = stack.layer_costs(table, padded)[0, :, 0].astype(np.float64)  # (L + 1, M)
        others = now.sum(0) - now[leaders]
        prices[leaders] = totals.reshape(len(leaders), stack.num_slots, -1) - others[:, None]
    return prices


def _solve(estimator: PlanEstimator, demand: Demand, around: Ints, bound: bool) -> Ints:
    """Returns the best plan `(1, L)` by prices around another plan, or `(0, L)` where no plan holds the ceilings.

    Args:
        estimator: holds the table.
        demand: ceilings and preferences.
        around: `(L,)` the plan at whose states slots are priced.
        bound: keep its channel cuts, so that the prices are exact; else the cuts are free and prices approximate.
    """
    table, demands = estimator.table, Demands.of([demand])
    prices, border = _prices_around(estimator, around), estimator.stack.border[0, : table.num_layers]
    ratios = estimator.estimate(around[None])[0][0]
    # The logarithms of the score, linearised at the plan, lie above it everywhere: no round loses ground.
    rates = demands.weights[0] / ratios
    objective = demands.accuracy_weight * table.drop + prices @ rates
    legal = table.legal
    if bound:
        level = table.recipe_level
        legal = legal & (level == np.take_along_axis(level, around[:, None], 1))
    limits = [(metric, ceiling) for metric, ceiling in enumerate(demand.ceilings) if ceiling is not None]
    values = [objective, table.drop, *(prices[:, :, metric] for metric, _ in limits)]
    worth = _worth(legal & table.integers, values) | _worth(legal & ~table.integers, values)
    layer, slot = np.nonzero(worth)
    program = _Program(layer, slot, table)
    for metric, ceiling in limits:
        crossing = border if metric == LATENCY else np.zeros(len(border))
        program.limit(prices[:, :, metric], crossing, 0.0, ceiling - estimator.stack.fixed[0, metric])
    most = math.inf if demand.max_accuracy_drop is None else most_total(demand.max_accuracy_drop, estimator.room)
    if math.isfinite(most):
        # The last unknown is by how many points the drop exceeds its ceiling; the score says what that costs.
        program.limit(table.drop, np.zeros(len(border)), -1.0, most)
    return program.solve(objective, border * rates[LATENCY], sum(demand.weights) * DROP_RATE)


class _Program:
    """An integer program whose unknowns are which slot each layer takes, its borders, and an excess of the drop."""

    def __init__(self, layer: Ints, slot: Ints, table: PriceTable) -> None:
        """Starts with one slot for each layer.

        Args:
            layer, slot: `(S,)` what may be taken.
            table: says which slots compute on integers, and which layer each one reads.
        """
        self.layer, self.slot, self.count = layer, slot, table.num_layers
        size, numbers = len(layer), np.arange(len(layer))
        taken = csr_array((np.ones(size), (layer, numbers)), shape=(self.count, size + self.count + 1))
        own = csr_array((table.integers[layer, slot].astype(float), (layer, numbers)), shape=taken.shape)
        reader = np.flatnonzero(table.nearest >= 0)
        before = (
            csr_array((np.ones(len(reader)), (reader, table.nearest[reader])), shape=(self.count, self.count)) @ own
        )
        crossing = csr_array((np.ones(self.count), (np.arange(self.count), size + np.arange(self.count))), taken.shape)
        self.constraints = [
            LinearConstraint(taken, 1.0, 1.0),
            LinearConstraint(own - before - crossing, -np.inf, 0.0),
            LinearConstraint(before - own - crossing, -np.inf, 0.0),
        ]

    def limit(self, cost: Doubles | Floats, crossing: Doubles | Floats, excess: float, most: float) -> None:
        """Adds a ceiling on the sum of costs `(L, K)`, of borders `(L,)` and of the drop's excess."""
        size = max(abs(most), 1e-3) / 100  # the solver's tolerance is absolute: rows of size 100 make it tight
        row = np.concatenate([cost[self.layer, self.slot], crossing, [excess]]) / size
        self.constraints.append(LinearConstraint(row[None], -np.inf, most / size))

    def solve(self, cost: Doubles, crossing: Doubles, excess: float) -> Ints:
        """Returns the plan `(1, L)` of the least sum, or `(0, L)` where none was found; arguments as in `limit`."""
        size = len(self.layer)
        with without_solver_output():
            solved = milp(
                np.concatenate([cost[self.layer, self.slot], crossing, [excess]]),
                integrality=np.append(np.ones(size), np.zeros(self.count + 1)),
                bounds=Bounds(0, np.concatenate([np.ones(size + self.count), [np.inf]])),
                constraints=self.constraints,
                # A limit of nodes, not of seconds: the same plans on a busy machine. Dominated slots are gone already,
                # and presolving what is left takes longer than it saves.
                options={"node_limit": NODE_LIMIT, "mip_rel_gap": GAP, "presolve": False},
            )
        taken = np.flatnonzero(solved.x[:size] > 0.5) if solved.x is not None else np.zeros(0, np.int64)
        plan: Ints = self.slot[taken].reshape(-1, self.count)
        return plan


def _worth(legal: Bools, values: list[Doubles | Floats]) -> Bools:
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
