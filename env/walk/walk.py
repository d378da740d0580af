"""The walk: many networks at once, layer by layer, with what every choice does to the layers behind it."""

from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plywise.env.prices.price_stack import LATENCY, NUM_METRICS, PriceStack
from plywise.env.prices.prices import METRICS, Bools, Floats, Ints
from plywise.env.score.least_plans import least_plans
from plywise.env.score.plan_drop import plan_drop
from plywise.env.score.score import SLACK, Array, Demands, expected_scores, score_plans, worst_use
from plywise.env.score.supply import SHADOW_PRICES, metric_shares, supply_plans
from plywise.env.score.uncertainty import counting_variance, spread_of

NUM_PRICES = len(SHADOW_PRICES)
WAY_OUT = NUM_PRICES
"""Index of the reference plan among a row's plans: following it holds the ceilings if anything known does."""
DROP = NUM_METRICS
"""Index of the drop behind the costs in `price`."""


class Walks:
    """n walks. Everything is an array with one row per walk; costs are shares of the original network's.

    Besides what was chosen so far, a row knows NUM_PRICES + 1 whole plans: those of the shadow prices and a way out.
    Their prices for the layers ahead are kept exact for the channels that the choices so far have left.

    State, all in `STATE`: `table`, `layer` `(n,)`; `actions` `(n, L)`, -1 ahead; `spent` `(n, M)`, fixed part
    included; `drop`, `true_drop` `(n,)` sums over layers, estimated and, with noise, true; `counting_noise` `(n,)`;
    `weights`... of the demands; `drop_factor`, `truth_factor` `(n, L + 1)` and `scale` `(n, L + 1, M)`, the row's own
    factors; `plans`, `kept`, `out` `(n, L + 1, P)` slots, input kept shares and output levels; `price`
    `(n, L + 1, P, M + 1)` costs and drop; `border_latency` `(n, L + 1, P)` latencies that come to them where the number
    format changes; `integer_inputs` `(n, L + 1)` whether the slots that were taken compute on integers.

    After `refresh`, of the current layer: `cost` `(n, K, M)`, `drops` `(n, K)`, `masks` `(n, K)`, `rest`
    `(n, P, M + 1)` what the plans make of the current and later layers, `behind` `(n, K, 2, M)` what the best price's
    plan and the way out make of the later layers after each slot, `projected` `(n, prices)` expected scores, `star`
    `(n,)` the best price, `potential` `(n,)` its score.
    """

    STATE = (
        *(
            "table",
            "layer",
            "actions",
            "spent",
            "drop",
            "true_drop",
            "counting_noise",
            "drop_factor",
            "truth_factor",
            "scale",
        ),
        *("plans", "kept", "out", "price", "border_latency", "integer_inputs"),
    )

    def __init__(self, stack: PriceStack, count: int) -> None:
        self.stack = stack
        self.count = count
        depth, plans = stack.num_layers + 1, NUM_PRICES + 1
        least = np.stack([least_plans(stack, index) for index in range(len(stack.tables))])  # (T, J, L + 1)
        self._least = least.transpose(0, 2, 1)
        self._least_cost = stack.plan_costs(np.arange(len(least)), self._least)  # (T, L + 1, J, M)
        self.table: Ints = np.zeros(count, np.int64)
        self.layer: Ints = np.zeros(count, np.int64)
        self.actions: Ints = np.full((count, stack.num_layers), -1)
        self.spent: Array = np.ones((count, NUM_METRICS))
        self.drop: Array = np.zeros(count)
        self.true_drop: Array = np.zeros(count)
        self.counting_noise: Array = np.zeros(count)
        self.drop_factor: Floats = np.ones((count, depth), np.float32)
        self.truth_factor: Floats = np.ones((count, depth), np.float32)
        self.scale: Floats = np.ones((count, depth, NUM_METRICS), np.float32)
        self.plans: Ints = np.zeros((count, depth, plans), np.int64)
        self.kept: Floats = np.ones((count, depth, plans), np.float32)
        self.out: Ints = np.zeros((count, depth, plans), np.int64)
        self.price: Floats = np.zeros((count, depth, plans, NUM_METRICS + 1), np.float32)
        self.border_latency: Floats = np.zeros((count, depth, plans), np.float32)
        self.integer_inputs: Bools = np.zeros((count, depth), bool)
        ones = np.ones(count)
        self.demands = Demands(ones, np.ones((count, NUM_METRICS)), np.ones((count, NUM_METRICS)), ones.copy())
        self._all = np.arange(count)

    def place(
        self,
        rows: Ints,
        table: Ints,
        drop_factor: Floats | None = None,
        truth_factor: Floats | None = None,
        cost_factor: Floats | None = None,
        counting_noise: Array | float = 0.0,
    ) -> Array:
        """Puts rows at the start of networks and returns what can be reached there.

        Args:
            rows: `(r,)` rows to reset.
            table: `(r,)` index of each row's network.
            drop_factor: `(r, L + 1)` on the drops, shown and true.
            truth_factor: `(r, L + 1)` on the true drops only.
            cost_factor: `(r, L + 1, M)` on the layers' costs; the original's changes with them.
            counting_noise: `(r,)` what counting samples adds to the true drop, in standard deviations of that.

        Returns:
            `(r, J, M)` shares of the original's cost, one row for each of `least_plans.COMBINATIONS`.
        """
        one = np.float32(1.0)
        self.table[rows], self.layer[rows], self.actions[rows] = table, 0, -1
        self.drop[rows] = self.true_drop[rows] = 0.0
        self.integer_inputs[rows] = False
        self.counting_noise[rows] = counting_noise
        self.drop_factor[rows] = one if drop_factor is None else drop_factor
        self.truth_factor[rows] = one if truth_factor is None else truth_factor
        self.scale[rows], self.spent[rows] = one, self.stack.fixed[table]
        if cost_factor is not None:
            grown = 1.0 + ((cost_factor - 1.0) * self.stack.base[table, :, 0]).sum(1)  # (r, M)
            self.scale[rows] = cost_factor / grown[:, None]
            self.spent[rows] /= grown
        reachable: Array = self.spent[rows][:, None] + np.einsum(
            "rljm,rlm->rjm", self._least_cost[table], self.scale[rows]
        )
        self._reachable = reachable
        return reachable

    def start(self, rows: Ints, demands: Demands) -> None:
        """Gives the rows that were just placed their demands and plans; `refresh` must follow."""
        for field in fields(Demands):
            getattr(self.demands, field.name)[rows] = getattr(demands, field.name)
        table, shares = self.table[rows], metric_shares(demands)
        self.shares = metric_shares(self.demands)
        priced = supply_plans(self.stack, table, shares, self.drop_factor[rows], self.scale[rows])
        excess = (self._reachable / demands.ceilings[:, None]).max(-1)  # (r, J)
        way_out = self._least[table, :, excess.argmin(1)]
        plans = np.concatenate([priced, way_out[..., None]], 2)
        self.plans[rows] = plans
        self.kept[rows], self.out[rows] = self.stack.states(table, plans)
        depth = np.arange(self.stack.num_layers + 1)[:, None]
        cost = self.stack.cost(table[:, None, None], depth, plans, self.kept[rows], self.out[rows])
        self.price[rows, :, :, :DROP] = cost * self.scale[rows][:, :, None]
        self.border_latency[rows] = self.stack.plan_borders(table, plans) * self.scale[rows][:, :, None, LATENCY]
        drop = self.stack.drop[table[:, None, None], depth, plans]
        self.price[rows, :, :, DROP] = drop * self.drop_factor[rows][..., None]

    def refresh(self) -> None:
        """Works out what the current layers offer; call it after the last `start` or `step` of a turn."""
        rows, table, layer, stack = self._all, self.table, self.layer, self.stack
        scale = self.scale[rows, layer]  # (n, M)
        kept, out = self.kept[rows, layer, WAY_OUT], self.out[rows, layer, WAY_OUT]
        self.cost = stack.menu(table, layer, kept, out) * scale[:, None]
        crossed = stack.integers[table, layer] != self.integer_inputs[rows, stack.nearest[table, layer]][:, None]
        self.cost[..., LATENCY] += (stack.border[table, layer] * scale[:, LATENCY])[:, None] * crossed
        self.drops = stack.drop[table, layer] * self.drop_factor[rows, layer][:, None]
        ahead = (np.arange(stack.num_layers + 1) >= layer[:, None]).astype(np.float32)
        flat = self.price.reshape(self.count, stack.num_layers + 1, -1)
        self.rest = np.matmul(ahead[:, None], flat).reshape(self.count, NUM_PRICES + 1, NUM_METRICS + 1)
        self.rest[..., LATENCY] += np.matmul(ahead[:, None], self.border_latency)[:, 0]
        spent, drop, room = (a[:, None].astype(np.float32) for a in (self.spent, self.drop, self.room))
        samples = stack.samples[table][:, None]
        total = spent + self.rest[..., :DROP]
        used = self._find_way_out(total)
        drops = plan_drop(drop + self.rest[..., DROP], room)
        scores = expected_scores(self.demands.per_plan(), total, drops, spread_of(drops, samples))
        self.promised, self.promised_drop = total[:, :NUM_PRICES], drops[:, :NUM_PRICES]
        self.projected = scores[:, :NUM_PRICES]
        self.star = self.projected.argmax(1)
        self.potential = self.projected[rows, self.star].astype(np.float64)
        self._crossing_costs = self._crossings()
        self.behind = self._behind()
        self.masks = self._masks(self._ruinous(used, drops, scores))

    @property
    def room(self) -> Array:
        """The largest possible drop of each row, `(n,)`."""
        return self.stack.room[self.table]

    @property
    def done(self) -> Bools:
        """Whether each walk has passed its last layer, `(n,)`."""
        finished: Bools = self.layer >= self.stack.layers[self.table]
        return finished

    def step(self, actions: Ints) -> None:
        """Takes one slot in each row; all must be legal."""
        rows, table, layer = self._all, self.table, self.layer
        self.actions[rows, layer] = actions
        self.spent += self.cost[rows, actions]
        drop = self.drops[rows, actions].astype(np.float64)
        self.drop += drop
        self.true_drop += drop * self.truth_factor[rows, layer]
        integer_inputs = self.stack.integers[table, layer, actions]
        # Two readers of a row may be the padding layer, whose border_latency stay 0.
        self.border_latency[rows[:, None], self.stack.readers[table, layer]] += self._crossing_costs[
            rows, integer_inputs.astype(np.intp)
        ]
        self.integer_inputs[rows, layer] = integer_inputs
        level = self.stack.slot_level[table, layer, actions]
        deciding = np.flatnonzero(self.stack.prunes[table, layer])
        if len(deciding):
            everyone = np.broadcast_to(np.arange(NUM_PRICES + 1), (len(deciding), NUM_PRICES + 1))
            kept, out, cost = self._moved(deciding, everyone, level[deciding][:, None])
            where = deciding[:, None], self.stack.affected[table[deciding], layer[deciding]]
            self.kept[where], self.out[where] = kept[:, 0], out[:, 0]
            self.price[(*where, slice(None), slice(DROP))] = cost[:, 0]
        self.layer = layer + 1

    def outcomes(self, rows: Ints) -> tuple[Array, Array, Array]:
        """Returns costs as shares `(r, M)`, drops as seen `(r,)` and scores `(r,)` of finished walks."""
        drop = plan_drop(self.true_drop[rows], self.room[rows])
        spread = np.sqrt(counting_variance(drop, self.stack.samples[self.table[rows]]))
        drop = np.minimum(drop + self.counting_noise[rows] * spread, self.room[rows])
        demands = Demands(*(getattr(self.demands, field.name)[rows] for field in fields(Demands)))
        return self.spent[rows], drop, score_plans(demands, self.spent[rows], drop)

    def finished_plans(self, rows: Ints) -> list[dict[str, Any]]:
        """Returns the finished walks of some rows as values that JSON can hold, except that `layers` is a tuple."""
        ratios, drops, scores = self.outcomes(rows)
        held = (ratios <= self.demands.ceilings[rows] * (1.0 + SLACK)).all(1)
        held &= drops <= self.demands.max_drop[rows] + SLACK
        plans = []
        for index, row in enumerate(rows):
            table = self.stack.tables[self.table[row]]
            actions = self.actions[row, : table.num_layers].tolist()
            recipes = [menu[action] for menu, action in zip(table.recipes, actions, strict=True)]
            plan = {"network": table.network, "actions": actions, "layers": table.layers, "recipes": recipes}
            plan |= dict(zip(METRICS, ratios[index].tolist(), strict=True))
            plan |= {"drop": float(drops[index]), "score": float(scores[index]), "demand_met": bool(held[index])}
            plans.append(plan)
        return plans

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Returns copies of the arrays that the walks depend on."""
        state = {name: getattr(self, name).copy() for name in self.STATE}
        return state | {field.name: getattr(self.demands, field.name).copy() for field in fields(Demands)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores walks of the same tables and count, and refreshes them."""
        for name in self.STATE:
            getattr(self, name)[...] = state[name]
        for field in fields(Demands):
            getattr(self.demands, field.name)[...] = state[field.name]
        self.shares = metric_shares(self.demands)
        self.refresh()

    def _find_way_out(self, total: Floats) -> Floats:
        """Makes that plan of each row its way out which, at these costs `(n, P, M)`, comes nearest to the ceilings.

        Returns:
            The largest share of a ceiling that each plan uses, `(n, P)`; the way out's is renewed in `total` as well.
        """
        used: Floats = worst_use(self.demands.per_plan(), total)
        best = used.argmin(1)
        rows = np.flatnonzero(used[self._all, best] < used[:, WAY_OUT])
        best = best[rows]
        for each in (self.plans, self.kept, self.out, self.price, self.border_latency):
            each[rows, :, WAY_OUT] = each[rows, :, best]
        for each in (self.rest, total, used):
            each[rows, WAY_OUT] = each[rows, best]
        return used

    def _moved(self, rows: Ints, plan: Ints, level: Ints) -> tuple[Floats, Ints, Floats]:
        """States and costs of the layers that the rows' current groups touch, were the groups set to given levels.

        Args:
            rows: `(r,)` rows at a layer that prunes.
            plan: `(r, p)` the plans to follow in those layers.
            level: `(r, q)` levels to try.

        Returns:
            Kept shares and output levels `(r, q, A, p)`, costs `(r, q, A, p, M)`.
        """
        stack, table, layer = self.stack, self.table[rows], self.layer[rows]
        touched, share = stack.affected[table, layer], stack.affected_share[table, layer]  # (r, A)
        own = self.plans[rows[:, None], layer[:, None], plan]  # (r, p)
        assumed = self._decided(table, layer, own)
        change = stack.levels[table[:, None], level][:, :, None] - assumed[:, None]  # (r, q, p)
        at = rows[:, None, None], touched[:, :, None], plan[:, None]
        kept = self.kept[at][:, None] + share[:, None, :, None] * change[:, :, None]
        follows = stack.affected_follows[table, layer][:, None, :, None]
        out = np.where(follows, level[:, :, None, None], self.out[at][:, None])
        cost = stack.cost(table[:, None, None, None], touched[:, None, :, None], self.plans[at][:, None], kept, out)
        return kept, out, cost * self.scale[rows[:, None], touched][:, None, :, None]

    def _crossings(self) -> Floats:
        """What the readers of the current layers take more or less, were these to compute on floats or on integers.

        Returns:
            Latencies `(n, 2, R, P)` of each plan, against those that the plans have so far.
        """
        stack, rows, table, layer = self.stack, self._all, self.table, self.layer
        readers = stack.readers[table, layer]  # (n, R)
        plans = self.plans[rows[:, None], readers]  # (n, R, P)
        theirs = stack.integers[table[:, None, None], readers[..., None], plans]
        own = stack.integers[table[:, None], layer[:, None], self.plans[rows, layer]][:, None]  # (n, 1, P)
        border = (stack.border[table[:, None], readers] * self.scale[rows[:, None], readers, LATENCY])[..., None]
        now = border * (theirs != own)
        return np.stack([border * theirs - now, border * ~theirs - now], 1)

    def _decided(self, table: Ints, layer: Ints, slot: Ints) -> Floats:
        """Kept share that the slots `(r, p)` of the rows' current layers leave of their groups."""
        level = self.stack.slot_level[table[:, None], layer[:, None], slot]
        return self.stack.levels[table[:, None], level]

    def _behind(self) -> Floats:
        """What the best price's plan and the way out make of the later layers after each slot, `(n, K, 2, M)`."""
        rows, table, layer = self._all, self.table, self.layer
        plan = np.stack([self.star, np.full(self.count, WAY_OUT)], 1)
        at = rows[:, None], plan
        later = self.rest[at] - self.price[rows[:, None], layer[:, None], plan]
        behind = np.repeat(later[:, None, :, :DROP], self.stack.num_slots, 1)
        # What the readers and those behind them take, by what this layer computes on, (n, 2, 2).
        crossing = (
            self._crossing_costs.sum(2)[rows[:, None], :, plan]
            - self.border_latency[rows[:, None], layer[:, None], plan][..., None]
        )
        integer = self.stack.integers[table, layer][..., None]  # (n, K, 1)
        behind[..., LATENCY] += np.where(integer, crossing[:, None, :, 1], crossing[:, None, :, 0])
        deciding = np.flatnonzero(self.stack.prunes[table, layer])
        if len(deciding):
            touched = self.stack.affected[table[deciding], layer[deciding]]
            now = self.price[deciding[:, None, None], touched[:, :, None], plan[deciding][:, None], :DROP]
            levels = np.broadcast_to(np.arange(self.stack.num_levels), (len(deciding), self.stack.num_levels))
            then = self._moved(deciding, plan[deciding], levels)[2]
            change = (then - now[:, None]).sum(2)  # (r, Q, 2, M)
            level = self.stack.slot_level[table[deciding], layer[deciding]]
            behind[deciding] += change[np.arange(len(deciding))[:, None], level]
        return behind

    def _ruinous(self, used: Floats, drops: Floats, scores: Floats) -> Bools:
        """Where no known plan is for the demand as a whole, `(n,)`, and the best gains by breaking a cost ceiling.

        What comes nearest to ceilings out of reach loses all accuracy, so there the score has to weigh one against
        the other.

        Args:
            used, drops, scores: `(n, P)` of the known plans.
        """
        breaks = used > 1.0 + SLACK
        fails = breaks[:, WAY_OUT] | (drops[:, WAY_OUT] > self.demands.max_drop)
        ruinous: Bools = fails & breaks[self._all, scores.argmax(1)]
        return ruinous

    def _masks(self, ruinous: Bools) -> Bools:
        """Legal slots after which the way out, or the best price's plan, still holds every ceiling.

        All of them where insisting on that is `ruinous`; where nothing known holds the ceilings, it is.
        """
        legal = self.stack.legal[self.table, self.layer]
        now = self.spent[:, None].astype(np.float32) + self.cost
        demands = self.demands.per_plan()
        used = np.minimum(*(worst_use(demands, now + self.behind[:, :, plan]) for plan in (0, 1)))
        used = np.where(legal, used, np.float32(np.inf))
        least = used.min(1, keepdims=True)  # rounding brings it above 1 where the way out uses all there is
        allowed: Bools = legal & ((used <= np.maximum(least, 1.0)) | ruinous[:, None])
        assert allowed.any(1).all()
        return allowed
