"""What walks have decided so far, and the whole plans that they follow ahead."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plywise.env.arrays import Bools, Doubles, Floats, Ints
from plywise.env.prices.price_stack import NUM_METRICS, PriceStack
from plywise.env.score.score import Demands
from plywise.env.score.supply import SHADOW_PRICES

NUM_PRICES = len(SHADOW_PRICES)
WAY_OUT = NUM_PRICES
"""Index of the reference plan among a row's plans: following it holds the ceilings if anything known does."""
DROP = NUM_METRICS
"""Index of the drop behind the costs in `price`."""


@dataclass(frozen=True)
class WalkState:
    """All that n walks depend on: arrays with one row per walk, changed in place; costs are shares of the original's.

    Besides what was chosen so far, a row knows P = NUM_PRICES + 1 whole plans: those of the shadow prices and a way
    out. Their prices for the layers ahead are kept exact for the channels that the choices so far have left.

    Attributes:
        table, layer: `(n,)` each row's network, and where in it the row is.
        actions: `(n, L)` slots taken, -1 ahead.
        spent: `(n, M)` fixed part included.
        drop, true_drop: `(n,)` sums over layers, estimated and, with noise, true.
        counting_noise: `(n,)` what counting samples adds to the true drop, in standard deviations of that.
        drop_factor, truth_factor: `(n, L + 1)` the row's own factors on drops, and on true drops alone.
        scale: `(n, L + 1, M)` the row's own factors on costs.
        plans, kept, out: `(n, L + 1, P)` slots, input kept shares and output levels.
        price: `(n, L + 1, P, M + 1)` costs and drop.
        border_latency: `(n, L + 1, P)` latencies that come to them where the number format changes.
        integer_inputs: `(n, L + 1)` whether the slots that were taken compute on integers.
        demands: of each row.
    """

    table: Ints
    layer: Ints
    actions: Ints
    spent: Doubles
    drop: Doubles
    true_drop: Doubles
    counting_noise: Doubles
    drop_factor: Floats
    truth_factor: Floats
    scale: Floats
    plans: Ints
    kept: Floats
    out: Ints
    price: Floats
    border_latency: Floats
    integer_inputs: Bools
    demands: Demands

    @classmethod
    def blank(cls, stack: PriceStack, count: int) -> "WalkState":
        """Returns the state of `count` walks that are yet to be placed."""
        depth, plans, ones = stack.num_layers + 1, NUM_PRICES + 1, np.ones(count)
        return cls(
            table=np.zeros(count, np.int64),
            layer=np.zeros(count, np.int64),
            actions=np.full((count, stack.num_layers), -1),
            spent=np.ones((count, NUM_METRICS)),
            drop=np.zeros(count),
            true_drop=np.zeros(count),
            counting_noise=np.zeros(count),
            drop_factor=np.ones((count, depth), np.float32),
            truth_factor=np.ones((count, depth), np.float32),
            scale=np.ones((count, depth, NUM_METRICS), np.float32),
            plans=np.zeros((count, depth, plans), np.int64),
            kept=np.ones((count, depth, plans), np.float32),
            out=np.zeros((count, depth, plans), np.int64),
            price=np.zeros((count, depth, plans, NUM_METRICS + 1), np.float32),
            border_latency=np.zeros((count, depth, plans), np.float32),
            integer_inputs=np.zeros((count, depth), bool),
            demands=Demands(ones, np.ones((count, NUM_METRICS)), np.ones((count, NUM_METRICS)), ones.copy()),
        )

    @property
    def count(self) -> int:
        """n."""
        return len(self.layer)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns all arrays by name, not copied, those of the demands among them."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "demands"}
        return own | {field.name: getattr(self.demands, field.name) for field in fields(Demands)}

    def restore(self, arrays: Mapping[str, Any]) -> None:
        """Takes over what `arrays` gave of as many walks over the same networks."""
        for name, array in self.arrays().items():
            array[...] = arrays[name]

    def follow(self, way_out: Ints) -> None:
        """Makes a plan of each row `(n,)` its way out."""
        rows = np.flatnonzero(way_out != WAY_OUT)
        for each in (self.plans, self.kept, self.out, self.price, self.border_latency):
            each[rows, :, WAY_OUT] = each[rows, :, way_out[rows]]


def moved(stack: PriceStack, state: WalkState, rows: Ints, plan: Ints, level: Ints) -> tuple[Floats, Ints, Floats]:
    """States and costs of the layers that the rows' current groups touch, were the groups set to given levels.

    Args:
        stack: the networks.
        state: where the rows are.
        rows: `(r,)` rows at a layer that prunes.
        plan: `(r, p)` the plans to follow in those layers.
        level: `(r, q)` levels to try.

    Returns:
        Kept shares and output levels `(r, q, A, p)`, costs `(r, q, A, p, M)`.
    """
    table, layer = state.table[rows], state.layer[rows]
    touched, share = stack.affected[table, layer], stack.affected_share[table, layer]  # (r, A)
    own = state.plans[rows[:, None], layer[:, None], plan]  # (r, p)
    assumed = stack.levels[table[:, None], stack.slot_level[table[:, None], layer[:, None], own]]
    change = stack.levels[table[:, None], level][:, :, None] - assumed[:, None]  # (r, q, p)
    at = rows[:, None, None], touched[:, :, None], plan[:, None]
    kept = state.kept[at][:, None] + share[:, None, :, None] * change[:, :, None]
    follows = stack.affected_follows[table, layer][:, None, :, None]
    out = np.where(follows, level[:, :, None, None], state.out[at][:, None])
    cost = stack.cost(table[:, None, None, None], touched[:, None, :, None], state.plans[at][:, None], kept, out)
    return kept, out, cost * state.scale[rows[:, None], touched][:, None, :, None]
