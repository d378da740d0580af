"""What the agent sees: numbers that mean the same on any network, any catalogue and any demand."""

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from plywise.env.arrays import Floats
from plywise.env.prices.price_stack import LATENCY, PriceStack
from plywise.env.prices.prices import LAYER_FEATURES, METRICS, RECIPE_FEATURES
from plywise.env.score.plan_drop import plan_drop
from plywise.env.score.score import expected_scores, worst_use
from plywise.env.score.supply import SHADOW_PRICES
from plywise.env.score.uncertainty import spread_of
from plywise.env.walk.walk import Walks
from plywise.env.walk.walk_state import DROP, NUM_PRICES, WAY_OUT

LIMIT = 8.0
"""Every feature lies within plus and minus this."""

CONTEXT_FEATURES = (
    "progress",
    *LAYER_FEATURES,
    "input_kept",
    *(f"score_gap_{index}" for index in range(NUM_PRICES)),
    *(f"excess_{index}" for index in range(NUM_PRICES)),
    *(f"promised_drop_{index}" for index in range(NUM_PRICES)),
    "log_shadow_price",
    *(f"weight_{name}" for name in ("accuracy", *METRICS)),
    *(f"log_ceiling_{name}" for name in METRICS),
    *(f"has_ceiling_{name}" for name in METRICS),
    "max_drop",
    "has_max_drop",
    *(f"slack_{name}" for name in METRICS),
    "spent_drop",
    "fixed_latency",
    "integer_speed",
)
"""Names of the context's entries.

`score_gap_i`: score promised at shadow price i minus the best; `excess_i`: how far its worst cost lies above the
ceiling (log; below 0 holds); `promised_drop_i`: its drop; `slack`: what is left of a ceiling against what the way out
needs (log); `integer_speed`: median log latency of integer recipes against identity.
"""

ROW_FEATURES = (
    *RECIPE_FEATURES,
    *(f"log_cost_{name}" for name in METRICS),
    *(f"log_share_{name}" for name in METRICS),
    "drop",
    "reduced_cost_low",
    "reduced_cost",
    "reduced_cost_high",
    *(f"saving_{name}" for name in METRICS),
    "promised_score",
    "promised_excess",
    "legal",
)
"""Names of a recipe row's entries.

`log_cost`: against identity in the same state; `log_share`: against the original network; `reduced_cost`: drop plus
cost at a quarter of, at and at four times the best shadow price, minus the menu's best; `saving`: what the cut saves
in later layers; `promised_score`, `promised_excess`: of the whole plan, were the rest done at the best shadow price,
the score relative to the menu's best. The last entry is 1 for a row that may be chosen, 0 for all others.
"""

Observation = dict[str, Floats]


def observation_space(num_slots: int) -> spaces.Dict:
    """Returns the space of observations of menus with `num_slots` rows."""
    rows = (num_slots, len(ROW_FEATURES))
    return spaces.Dict(
        context=spaces.Box(-LIMIT, LIMIT, (len(CONTEXT_FEATURES),), np.float32),
        recipes=spaces.Box(-LIMIT, LIMIT, rows, np.float32),
    )


def blank(num_slots: int) -> Observation:
    """Returns the observation after the last layer: nothing left to decide, all zeros."""
    return {
        "context": np.zeros(len(CONTEXT_FEATURES), np.float32),
        "recipes": np.zeros((num_slots, len(ROW_FEATURES)), np.float32),
    }


def reduced_costs(walks: Walks, factors: tuple[float, ...] = (1.0,)) -> Floats:
    """Returns drop plus cost of each slot at multiples of the best shadow price, points `(n, factors, K)`."""
    outlook = walks.outlook
    price = SHADOW_PRICES[outlook.star][:, None, None].astype(np.float32) * np.array(factors, np.float32)[:, None]
    paid = outlook.cost + outlook.behind[:, :, 0]  # later layers cost less where this one is cut
    scalar = np.matmul(paid, outlook.shares[..., None].astype(np.float32))  # (n, K, 1)
    reduced: Floats = outlook.drops[:, None] + price * scalar[:, None, :, 0]
    return reduced


class Observer:
    """Turns the state of walks into observations."""

    def __init__(self, stack: PriceStack) -> None:
        depth = stack.num_layers + 1
        self.layers = np.zeros((len(stack.tables), depth, len(LAYER_FEATURES)), np.float32)
        recipes = np.zeros((len(stack.tables), depth, stack.num_slots, len(ROW_FEATURES)), np.float32)
        recipes[..., -1] = 1.0
        self.device = np.zeros((len(stack.tables), 2), np.float32)
        for index, table in enumerate(stack.tables):
            self.layers[index, : table.num_layers] = table.layer_features
            own = recipes[index, : table.num_layers, : table.num_slots, : len(RECIPE_FEATURES)]
            np.clip(table.recipe_features, -LIMIT, LIMIT, out=own)
            speed = _log(table.cost[LATENCY, :, :, 0, 0]) - _log(table.cost[LATENCY, :, :1, 0, 0])
            median = float(np.median(speed[table.integers])) if table.integers.any() else 0.0
            self.device[index] = stack.fixed[index, LATENCY], median
        self.recipes = recipes.reshape(-1, *recipes.shape[2:])  # one row for each layer of each network

    def observe(self, walks: Walks) -> Observation:
        """Returns `context` `(n, C)` and `recipes` `(n, K, F)` of walks."""
        return {"context": self._context(walks), "recipes": self._rows(walks)}

    def _context(self, walks: Walks) -> Floats:
        state, outlook = walks.state, walks.outlook
        rows, table, layer, demands = np.arange(state.count), state.table, state.layer, state.demands
        excess = _log_clipped(worst_use(demands.per_plan(), outlook.promised))
        weights = np.concatenate([demands.accuracy_weight[:, None], demands.weights], 1)
        has_ceiling, has_max = np.isfinite(demands.ceilings), np.isfinite(demands.max_drop)
        left = demands.ceilings - state.spent
        slack = np.maximum(left, 1e-6) / np.maximum(outlook.rest[:, WAY_OUT, :DROP], 1e-6)
        parts = (
            (layer / walks.stack.layers[table])[:, None],
            self.layers[table, layer],
            state.kept[rows, layer, WAY_OUT][:, None],
            _near(outlook.projected - outlook.potential[:, None]),
            excess,
            _points(outlook.promised_drop),
            np.log10(SHADOW_PRICES[outlook.star])[:, None] / 2,
            weights / weights.sum(1, keepdims=True),
            np.where(has_ceiling, _log_clipped(demands.ceilings), 0.0),
            has_ceiling,
            _points(np.where(has_max, demands.max_drop, 0.0))[:, None],
            has_max[:, None],
            np.where(has_ceiling, _log_clipped(slack), 0.0),
            _points(state.drop)[:, None],
            self.device[table],
        )
        return np.clip(np.concatenate(parts, 1, dtype=np.float32, casting="unsafe"), -LIMIT, LIMIT)

    def _rows(self, walks: Walks) -> Floats:
        state, outlook = walks.state, walks.outlook
        rows, table, layer = np.arange(state.count), state.table, state.layer
        allowed = outlook.masks
        features = self.recipes.take(table * self.layers.shape[1] + layer, axis=0)
        at = len(RECIPE_FEATURES)
        log_cost = _log(outlook.cost)
        features[:, :, at : at + 3] = log_cost - log_cost[:, :1]
        features[:, :, at + 3 : at + 6] = log_cost / 2
        features[:, :, at + 6] = _points(outlook.drops * 4)
        reduced = reduced_costs(walks, (0.25, 1.0, 4.0))
        best = np.where(allowed[:, None], reduced, np.float32(np.inf)).min(2, keepdims=True)
        features[:, :, at + 7 : at + 10] = _near(reduced - best).transpose(0, 2, 1)
        unchanged = outlook.behind[:, :1, 0]  # slot 0 is identity: it cuts nothing
        features[:, :, at + 10 : at + 13] = _points(20 * (unchanged - outlook.behind[:, :, 0]))
        promised = state.spent[:, None].astype(np.float32) + outlook.cost + outlook.behind[:, :, 0]
        later = outlook.rest[rows, outlook.star, DROP] - state.price[rows, layer, outlook.star, DROP]
        drop = (state.drop + later)[:, None].astype(np.float32) + outlook.drops
        drop = plan_drop(drop, walks.room[:, None].astype(np.float32))
        demands = state.demands.per_plan()
        score = expected_scores(demands, promised, drop, spread_of(drop, walks.stack.samples[table][:, None]))
        best_score = np.where(allowed, score, -np.inf).max(1, keepdims=True)
        features[:, :, at + 13] = _near(score - best_score)
        features[:, :, at + 14] = _log_clipped(worst_use(demands, promised))
        np.clip(features[:, :, at:], -LIMIT, LIMIT, out=features[:, :, at:])
        features[~allowed] = 0.0
        return features


def _log(value: NDArray[np.floating]) -> NDArray[np.floating]:
    result: NDArray[np.floating] = np.log(np.maximum(value, 1e-6))
    return result


def _log_clipped(value: NDArray[np.floating]) -> NDArray[np.floating]:
    clipped: NDArray[np.floating] = np.clip(_log(value), -LIMIT, LIMIT)
    return clipped


def _near(gap: NDArray[np.floating]) -> NDArray[np.floating]:
    """Squeezes gaps to the best so that a hundredth is told from zero as clearly as ten from one."""
    result: NDArray[np.floating] = np.arcsinh(100.0 * gap)
    return result


def _points(value: NDArray[np.floating]) -> NDArray[np.floating]:
    result: NDArray[np.floating] = np.arcsinh(value)
    return result
