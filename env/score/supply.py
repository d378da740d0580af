"""Supply curves: what the layers would cost and lose if each took its best recipe at a given price of cost.

This is the Lagrangian of the knapsack behind the walk: at shadow price p a layer takes the slot with the least
`drop + p * cost`, cost being a mixture of the metrics as shares of the original's. Sixteen prices make sixteen whole
plans; what they promise for the layers ahead tells an agent how dearly it has to sell the current one.
"""

import numpy as np

from plywise.env.arrays import Doubles, Floats, Ints
from plywise.env.prices.price_stack import PriceStack
from plywise.env.score.score import Demands

SHADOW_PRICES = np.geomspace(1e-2, 1e4, 16)
"""Points of accuracy for the original's whole cost."""


def metric_shares(demands: Demands) -> Doubles:
    """Returns how much each metric counts in the one cost that shadow prices apply to, `(n, M)`, summing to 1."""
    want = demands.weights + 1.0 / demands.ceilings
    total = want.sum(-1, keepdims=True)
    shares: Doubles = np.where(total > 0, want / np.where(total > 0, total, 1.0), 1.0 / want.shape[-1])
    return shares


def supply_plans(stack: PriceStack, table: Ints, shares: Doubles, drop_factor: Floats, scale: Floats) -> Ints:
    """Returns the plan of each shadow price, slots `(n, L + 1, prices)`.

    A slot that prunes is credited with what it saves in later layers, in proportion to what is left of the
    original's cost at the price before: the later layers will be compressed too.

    Args:
        stack: the price tables.
        table: `(n,)` network of each row.
        shares: `(n, M)` from `metric_shares`.
        drop_factor: `(n, L + 1)` the row's own factors on drops.
        scale: `(n, L + 1, M)` the row's own factors on costs.
    """
    weight = shares.astype(np.float32)[:, None] * scale  # (n, L + 1, M)
    own = np.matmul(stack.base[table], weight[..., None])[..., 0]
    saved = np.matmul(stack.saving[table], weight[..., None])[..., 0]
    drop = np.where(stack.legal[table], stack.drop[table] * drop_factor[..., None], np.float32(np.inf))
    plans = np.empty((*drop.shape[:2], len(SHADOW_PRICES)), np.int64)
    left = np.ones((len(table), 1, 1), np.float32)
    for index, price in enumerate(SHADOW_PRICES.astype(np.float32)):
        plan = plans[:, :, index] = (drop + price * (own - left * saved)).argmin(2)
        left = np.take_along_axis(own, plan[..., None], 2).sum((1, 2))[:, None, None]
    return plans
