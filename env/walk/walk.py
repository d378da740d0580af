"""The walk: many networks at once, layer by layer, with what every choice does to the layers behind it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plywise.env.arrays import Bools, Doubles, Floats, Ints
from plywise.env.prices.price_stack import LATENCY, PriceStack
from plywise.env.prices.prices import METRICS
from plywise.env.score.least_plans import least_plans
from plywise.env.score.plan_drop import plan_drop
from plywise.env.score.score import SLACK, Demands, score_plans
from plywise.env.score.supply import metric_shares, supply_plans
from plywise.env.score.uncertainty import counting_variance
from plywise.env.walk.outlook import Outlook, look_ahead
from plywise.env.walk.walk_state import DROP, NUM_PRICES, WalkState, moved


@dataclass(frozen=True)
class Factors:
    """What makes rows differ from the price tables of their networks, r rows; none of it where None.

    Attributes:
        drop: `(r, L + 1)` on the drops, shown and true.
        truth: `(r, L + 1)` on the true drops only.
        cost: `(r, L + 1, M)` on the layers' costs; the original's changes with them.
        counting_noise: `(r,)` what counting samples adds to the true drop, in standard deviations of that.
    """

    drop: Floats | None = None
    truth: Floats | None = None
    cost: Floats | None = None
    counting_noise: Doubles | float = 0.0


class Walks:
    """n walks: rows are placed at the start of networks, given demands (`start`), and then take a slot a `step`.

    Attributes:
        stack: the networks.
        state: what the walks depend on.
    """

    def __init__(self, stack: PriceStack, count: int) -> None:
        """Prepares for `count` walks over the networks of a stack."""
        self.stack = stack
        self.state = WalkState.blank(stack, count)
        least = np.stack([least_plans(stack, index) for index in range(len(stack.tables))])  # (T, J, L + 1)
        self._least = least.transpose(0, 2, 1)
        self._least_cost = stack.plan_costs(np.arange(len(least)), self._least)  # (T, L + 1, J, M)
        self._outlook: Outlook | None = None

    @property
    def outlook(self) -> Outlook:
        """What the current layers offer; worked out anew only after the walks have moved."""
        if self._outlook is None:
            self._outlook = look_ahead(self.stack, self.state)
        return self._outlook

    @property
    def room(self) -> Doubles:
        """The largest possible drop of each row, `(n,)`."""
        return self.stack.room[self.state.table]

    @property
    def done(self) -> Bools:
        """Whether each walk has passed its last layer, `(n,)`."""
        finished: Bools = self.state.layer >= self.stack.layers[self.state.table]
        return finished

    def place(self, rows: Ints, table: Ints, factors: Factors | None = None) -> Doubles:
        """Puts rows at the start of networks and returns what can be reached there; `start` must follow.

        Args:
            rows: `(r,)` rows to reset.
            table: `(r,)` index of each row's network.
            factors: of each row.

        Returns:
            `(r, J, M)` shares of the original's cost, one row for each of `least_plans.COMBINATIONS`.
        """
        state, own, one = self.state, factors or Factors(), np.float32(1.0)
        state.table[rows], state.layer[rows], state.actions[rows] = table, 0, -1
        state.drop[rows] = state.true_drop[rows] = 0.0
        state.integer_inputs[rows] = False
        state.counting_noise[rows] = own.counting_noise
        state.drop_factor[rows] = one if own.drop is None else own.drop
        state.truth_factor[rows] = one if own.truth is None else own.truth
        state.scale[rows], state.spent[rows] = one, self.stack.fixed[table]
        if own.cost is not None:
            grown = 1.0 + ((own.cost - 1.0) * self.stack.base[table, :, 0]).sum(1)  # (r, M)
            state.scale[rows] = own.cost / grown[:, None]
            state.spent[rows] /= grown
        self._outlook = None
        return self._reachable(rows)

    def start(self, rows: Ints, demands: Demands) -> None:
        """Gives the rows that were just placed their demands and plans."""
        state, stack, table = self.state, self.stack, self.state.table[rows]
        for field in fields(Demands):
            getattr(state.demands, field.name)[rows] = getattr(demands, field.name)
        priced = supply_plans(stack, table, metric_shares(demands), state.drop_factor[rows], state.scale[rows])
        excess = (self._reachable(rows) / demands.ceilings[:, None]).max(-1)  # (r, J)
        way_out = self._least[table, :, excess.argmin(1)]
        plans = np.concatenate([priced, way_out[..., None]], 2)
        state.plans[rows] = plans
        state.kept[rows], state.out[rows] = stack.states(table, plans)
        depth = np.arange(stack.num_layers + 1)[:, None]
        cost = stack.cost(table[:, None, None], depth, plans, state.kept[rows], state.out[rows])
        state.price[rows, :, :, :DROP] = cost * state.scale[rows][:, :, None]
        state.border_latency[rows] = stack.plan_borders(table, plans) * state.scale[rows][:, :, None, LATENCY]
        drop = stack.drop[table[:, None, None], depth, plans]
        state.price[rows, :, :, DROP] = drop * state.drop_factor[rows][..., None]
        self._outlook = None

    def step(self, actions: Ints) -> None:
        """Takes one slot in each row; all must be legal."""
        state, stack, outlook, rows = self.state, self.stack, self.outlook, np.arange(self.state.count)
        table, layer = state.table, state.layer
        state.follow(outlook.way_out)
        state.actions[rows, layer] = actions
        state.spent[:] += outlook.cost[rows, actions]
        drop = outlook.drops[rows, actions].astype(np.float64)
        state.drop[:] += drop
        state.true_drop[:] += drop * state.truth_factor[rows, layer]
        integer_inputs = stack.integers[table, layer, actions]
        # Two readers of a row may be the padding layer, whose border_latency stay 0.
        crossed = outlook.crossings[rows, integer_inputs.astype(np.intp)]
        state.border_latency[rows[:, None], stack.readers[table, layer]] += crossed
        state.integer_inputs[rows, layer] = integer_inputs
        self._cut(stack.slot_level[table, layer, actions])
        state.layer[:] += 1
        self._outlook = None

    def outcomes(self, rows: Ints) -> tuple[Doubles, Doubles, Doubles]:
        """Returns costs as shares `(r, M)`, drops as seen `(r,)` and scores `(r,)` of finished walks."""
        drop = plan_drop(self.state.true_drop[rows], self.room[rows])
        spread = np.sqrt(counting_variance(drop, self.stack.samples[self.state.table[rows]]))
        drop = np.minimum(drop + self.state.counting_noise[rows] * spread, self.room[rows])
        demands = Demands(*(getattr(self.state.demands, field.name)[rows] for field in fields(Demands)))
        return self.state.spent[rows], drop, score_plans(demands, self.state.spent[rows], drop)

    def finished_plans(self, rows: Ints) -> list[dict[str, Any]]:
        """Returns the finished walks of some rows as values that JSON can hold, except that `layers` is a tuple."""
        ratios, drops, scores = self.outcomes(rows)
        held = (ratios <= self.state.demands.ceilings[rows] * (1.0 + SLACK)).all(1)
        held &= drops <= self.state.demands.max_drop[rows] + SLACK
        plans = []
        for index, row in enumerate(rows):
            table = self.stack.tables[self.state.table[row]]
            actions = self.state.actions[row, : table.num_layers].tolist()
            recipes = [menu[action] for menu, action in zip(table.recipes, actions, strict=True)]
            plan = {"network": table.network, "actions": actions, "layers": table.layers, "recipes": recipes}
            plan |= dict(zip(METRICS, ratios[index].tolist(), strict=True))
            plan |= {"drop": float(drops[index]), "score": float(scores[index]), "demand_met": bool(held[index])}
            plans.append(plan)
        return plans

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Returns copies of the arrays that the walks depend on."""
        return {name: array.copy() for name, array in self.state.arrays().items()}

    def set_state(self, arrays: Mapping[str, Any]) -> None:
        """Restores walks of the same tables and count."""
        self.state.restore(arrays)
        self._outlook = None

    def _reachable(self, rows: Ints) -> Doubles:
        """What the plans that make costs small cost whole, of rows that were just placed; see `place`."""
        least = np.einsum("rljm,rlm->rjm", self._least_cost[self.state.table[rows]], self.state.scale[rows])
        reachable: Doubles = self.state.spent[rows][:, None] + least
        return reachable

    def _cut(self, level: Ints) -> None:
        """Sets the groups that the current layers decide to levels `(n,)`, in all plans."""
        state, stack = self.state, self.stack
        deciding = np.flatnonzero(stack.prunes[state.table, state.layer])
        if len(deciding):
            everyone = np.broadcast_to(np.arange(NUM_PRICES + 1), (len(deciding), NUM_PRICES + 1))
            kept, out, cost = moved(stack, state, deciding, everyone, level[deciding][:, None])
            where = deciding[:, None], stack.affected[state.table[deciding], state.layer[deciding]]
            state.kept[where], state.out[where] = kept[:, 0], out[:, 0]
            state.price[(*where, slice(None), slice(DROP))] = cost[:, 0]
