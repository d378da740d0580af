"""What the current layers of walks offer, and what every choice there makes of the layers behind them."""

from dataclasses import dataclass

import numpy as np

from plywise.env.arrays import Bools, Doubles, Floats, Ints
from plywise.env.prices.price_stack import LATENCY, NUM_METRICS, PriceStack
from plywise.env.score.plan_drop import plan_drop
from plywise.env.score.score import SLACK, expected_scores, worst_use
from plywise.env.score.supply import metric_shares
from plywise.env.score.uncertainty import spread_of
from plywise.env.walk.walk_state import DROP, NUM_PRICES, WAY_OUT, WalkState, moved


@dataclass(frozen=True)
class Outlook:
    """Follows from a `WalkState` alone.

    Attributes:
        shares: `(n, M)` from `metric_shares`.
        cost: `(n, K, M)` of the slots of the current layers.
        drops: `(n, K)` of them.
        masks: `(n, K)` which of them may be chosen.
        way_out: `(n,)` the plan that comes nearest to the ceilings; it becomes the row's way out with the next step.
        rest: `(n, P, M + 1)` what the plans make of the current and later layers.
        promised, promised_drop: `(n, prices, M)` and `(n, prices)` what whole walks end at if the plans are followed.
        projected: `(n, prices)` scores that are expected of that.
        star: `(n,)` the best price.
        potential: `(n,)` its score.
        crossings: `(n, 2, R, P)` latencies that readers of the current layers take more in each plan than so far, were
            these to compute on floats or on integers.
        behind: `(n, K, 2, M)` what the best price's plan and the way out make of the later layers after each slot.
    """

    shares: Doubles
    cost: Floats
    drops: Floats
    masks: Bools
    way_out: Ints
    rest: Floats
    promised: Floats
    promised_drop: Floats
    projected: Floats
    star: Ints
    potential: Doubles
    crossings: Floats
    behind: Floats


def look_ahead(stack: PriceStack, state: WalkState) -> Outlook:
    """Returns what the current layers of walks offer."""
    rows, table = np.arange(state.count), state.table
    cost, rest = _costs(stack, state), _rest(stack, state)
    total = state.spent[:, None].astype(np.float32) + rest[..., :DROP]
    used: Floats = worst_use(state.demands.per_plan(), total)
    best = used.argmin(1)
    way_out = np.where(used[rows, best] < used[:, WAY_OUT], best, WAY_OUT)
    crossings = _crossings(stack, state)
    renewed = np.flatnonzero(way_out != WAY_OUT)
    for each in (rest, total, used, crossings.transpose(0, 3, 1, 2)):
        each[renewed, WAY_OUT] = each[renewed, way_out[renewed]]
    room, so_far = (each[:, None].astype(np.float32) for each in (stack.room[table], state.drop))
    lost = plan_drop(so_far + rest[..., DROP], room)
    scores = expected_scores(state.demands.per_plan(), total, lost, spread_of(lost, stack.samples[table][:, None]))
    projected = scores[:, :NUM_PRICES]
    star = projected.argmax(1)
    behind = _behind(stack, state, rest, np.stack([star, way_out], 1), crossings)
    return Outlook(
        shares=metric_shares(state.demands),
        cost=cost,
        drops=stack.drop[table, state.layer] * state.drop_factor[rows, state.layer][:, None],
        masks=_masks(stack, state, cost, behind, _ruinous(state, used, lost, scores)),
        way_out=way_out,
        rest=rest,
        promised=total[:, :NUM_PRICES],
        promised_drop=lost[:, :NUM_PRICES],
        projected=projected,
        star=star,
        potential=projected[rows, star].astype(np.float64),
        crossings=crossings,
        behind=behind,
    )


def _costs(stack: PriceStack, state: WalkState) -> Floats:
    """What the slots of the current layers cost, the change of the number format included, `(n, K, M)`."""
    rows, table, layer = np.arange(state.count), state.table, state.layer
    scale = state.scale[rows, layer]  # (n, M)
    kept, out = state.kept[rows, layer, WAY_OUT], state.out[rows, layer, WAY_OUT]  # the same in all plans
    cost = stack.menu(table, layer, kept, out) * scale[:, None]
    crossed = stack.integers[table, layer] != state.integer_inputs[rows, stack.nearest[table, layer]][:, None]
    cost[..., LATENCY] += (stack.border[table, layer] * scale[:, LATENCY])[:, None] * crossed
    return cost


def _rest(stack: PriceStack, state: WalkState) -> Floats:
    """What the plans make of the current and later layers, `(n, P, M + 1)`."""
    ahead = (np.arange(stack.num_layers + 1) >= state.layer[:, None]).astype(np.float32)[:, None]
    flat = state.price.reshape(state.count, stack.num_layers + 1, -1)
    rest: Floats = np.matmul(ahead, flat).reshape(state.count, NUM_PRICES + 1, NUM_METRICS + 1)
    rest[..., LATENCY] += np.matmul(ahead, state.border_latency)[:, 0]
    return rest


def _crossings(stack: PriceStack, state: WalkState) -> Floats:
    """What readers of the current layers take more, see `Outlook`."""
    rows, table, layer = np.arange(state.count), state.table, state.layer
    readers = stack.readers[table, layer]  # (n, R)
    plans = state.plans[rows[:, None], readers]  # (n, R, P)
    theirs = stack.integers[table[:, None, None], readers[..., None], plans]
    own = stack.integers[table[:, None], layer[:, None], state.plans[rows, layer]][:, None]  # (n, 1, P)
    border = (stack.border[table[:, None], readers] * state.scale[rows[:, None], readers, LATENCY])[..., None]
    now = border * (theirs != own)
    return np.stack([border * theirs - now, border * ~theirs - now], 1)


def _behind(stack: PriceStack, state: WalkState, rest: Floats, plan: Ints, crossings: Floats) -> Floats:
    """What two plans `(n, 2)` make of the later layers after each slot, `(n, K, 2, M)`."""
    rows, table, layer = np.arange(state.count), state.table, state.layer
    at = rows[:, None], plan
    later = rest[at] - state.price[rows[:, None], layer[:, None], plan]
    behind = np.repeat(later[:, None, :, :DROP], stack.num_slots, 1)
    # What the readers and those behind them take, by what this layer computes on, (n, 2, 2).
    crossing = crossings.sum(2)[rows[:, None], :, plan]
    crossing = crossing - state.border_latency[rows[:, None], layer[:, None], plan][..., None]
    integer = stack.integers[table, layer][..., None]  # (n, K, 1)
    behind[..., LATENCY] += np.where(integer, crossing[:, None, :, 1], crossing[:, None, :, 0])
    deciding = np.flatnonzero(stack.prunes[table, layer])
    if len(deciding):
        touched = stack.affected[table[deciding], layer[deciding]]
        now = state.price[deciding[:, None, None], touched[:, :, None], plan[deciding][:, None], :DROP]
        levels = np.broadcast_to(np.arange(stack.num_levels), (len(deciding), stack.num_levels))
        then = moved(stack, state, deciding, plan[deciding], levels)[2]
        change = (then - now[:, None]).sum(2)  # (r, Q, 2, M)
        level = stack.slot_level[table[deciding], layer[deciding]]
        behind[deciding] += change[np.arange(len(deciding))[:, None], level]
    return behind


def _ruinous(state: WalkState, used: Floats, drops: Floats, scores: Floats) -> Bools:
    """Where no known plan is for the demand as a whole, `(n,)`, and the best gains by breaking a cost ceiling.

    What comes nearest to ceilings out of reach loses all accuracy, so there the score has to weigh one against
    the other.

    Args:
        state: the demands.
        used, drops, scores: `(n, P)` of the known plans.
    """
    breaks = used > 1.0 + SLACK
    fails = breaks[:, WAY_OUT] | (drops[:, WAY_OUT] > state.demands.max_drop)
    ruinous: Bools = fails & breaks[np.arange(state.count), scores.argmax(1)]
    return ruinous


def _masks(stack: PriceStack, state: WalkState, cost: Floats, behind: Floats, ruinous: Bools) -> Bools:
    """Legal slots after which the way out, or the best price's plan, still holds every ceiling.

    All of them where insisting on that is `ruinous`; where nothing known holds the ceilings, it is.
    """
    legal = stack.legal[state.table, state.layer]
    now = state.spent[:, None].astype(np.float32) + cost
    demands = state.demands.per_plan()
    used = np.minimum(*(worst_use(demands, now + behind[:, :, plan]) for plan in (0, 1)))
    used = np.where(legal, used, np.float32(np.inf))
    least = used.min(1, keepdims=True)  # rounding brings it above 1 where the way out uses all there is
    allowed: Bools = legal & ((used <= np.maximum(least, 1.0)) | ruinous[:, None])
    assert allowed.any(1).all()
    return allowed
