import dataclasses

import numpy as np
import pytest

from plywise.env.prices.price_stack import PriceStack
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import PlanEstimator
from plywise.env.score.least_plans import least_plans
from plywise.env.score.score import Demands, score_plans
from plywise.env.score.uncertainty import LEAST_CHANGED
from plywise.env.walk.demand_sampler import DemandSampler
from plywise.env.walk.observation import CONTEXT_FEATURES, LIMIT, ROW_FEATURES, Observer, reduced_costs
from plywise.env.walk.outlook import look_ahead
from plywise.env.walk.synthetic import synthetic_table
from plywise.env.walk.walk import Factors, Walks
from plywise.env.walk.walk_state import WAY_OUT


def start(tables, count, seed=0, demand=None, **factors):
    walks = Walks(PriceStack(tables), count)
    rng = np.random.default_rng(seed)
    rows, table = np.arange(count), rng.integers(len(tables), size=count)
    reachable = walks.place(rows, table, Factors(**factors))
    sampler = DemandSampler()
    walks.start(rows, Demands.of([demand or sampler.sample(row, rng) for row in reachable]))
    return walks


def finish(walks, choose):
    """Walks to the end; rows that are done earlier stay on padding layers, where nothing costs anything."""
    while not walks.done.all():
        walks.step(choose(walks))
    return walks


def at_random(seed):
    rng = np.random.default_rng(seed)
    return lambda walks: (walks.outlook.masks * rng.random(walks.outlook.masks.shape)).argmax(1)


@pytest.fixture(scope="module")
def tables():
    return [synthetic_table(np.random.default_rng(seed), layers) for seed, layers in enumerate((4, 9, 14))]


@pytest.fixture
def pair():
    """Two layers, the first decides for one group of channels that makes half of the second's input."""
    table = synthetic_table(np.random.default_rng(0), 2, num_slots=2, pruning=False)
    keep = np.array([1.0, 0.5, 0.25], np.float32)
    cost = np.ones((3, 2, 2, 3, 3), np.float32)
    cost[:, 1] = keep[:, None] * 8
    cost[:, 0, 1] = 0.5
    return dataclasses.replace(
        table,
        legal=np.ones((2, 2), bool),
        cost=cost,
        keep_levels=keep,
        in_share=np.array([[0.0], [0.5]], np.float32),
        out_group=np.array([0, -1]),
        leads=np.array([True, False]),
        recipe_level=np.array([[0, 2], [0, 0]]),
        fixed=np.ones(3, np.float32),
        original=np.full(3, 10.0, np.float32),
    )


def test_upstream_cuts_change_the_price_of_later_layers(pair):
    walks = start([pair], 2, demand=Demand())
    assert walks.outlook.cost[0] == pytest.approx(np.array([[0.1] * 3, [0.05] * 3]))
    walks.step(np.array([0, 1]))
    # A quarter of half the input is kept: 0.625 of it, between the levels 1 and 0.5, priced 8 and 4.
    assert walks.outlook.cost[:, 0] == pytest.approx(np.array([[0.8] * 3, [0.5] * 3]))
    walks.step(np.zeros(2, int))
    assert walks.outcomes(np.arange(2))[0] == pytest.approx(np.array([[1.0] * 3, [0.65] * 3]))


def test_what_a_cut_saves_downstream_is_seen_before_it_is_made(pair):
    walks = start([pair], 1, demand=Demand())
    saved = walks.outlook.behind[0, 0, 0] - walks.outlook.behind[0, 1, 0]
    cheap = walks.state.plans[0, 1, walks.outlook.star[0]]
    assert saved == pytest.approx(np.full(3, 0.3)), cheap


def test_numbers_that_change_their_form_take_time(pair):
    integers = np.array([[False, True], [False, True]])
    prices = {"integers": integers, "nearest": np.array([-1, 0]), "border": np.array([0.2, 0.5], np.float32)}
    walks = start([dataclasses.replace(pair, **prices)], 2, demand=Demand())
    assert walks.outlook.cost[0, :, 1] == pytest.approx([0.1, 0.05 + 0.02])
    walks.step(np.array([0, 1]))
    assert walks.outlook.cost[0, :, 1] == pytest.approx([0.8, 0.8 + 0.05])
    assert walks.outlook.cost[1, :, 1] == pytest.approx([0.5 + 0.05, 0.5])
    assert walks.outlook.cost[1, :, 0] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("seed", range(3))
def test_finished_walks_cost_what_the_estimator_says(tables, seed):
    walks = finish(start(tables, 24, seed), at_random(seed))
    for row in range(24):
        table = tables[walks.state.table[row]]
        ratios, drops = PlanEstimator(table).estimate(walks.state.actions[row : row + 1, : table.num_layers])
        assert walks.state.spent[row] == pytest.approx(ratios[0], rel=1e-5)
        assert walks.outcomes(np.array([row]))[1][0] == pytest.approx(drops[0], rel=1e-5)


def test_plans_ahead_stay_exact_while_choices_are_made(tables):
    """After any prefix, what is promised at each price is what the prefix and that plan together really cost."""
    walks, choose = start(tables, 12, seed=3), at_random(3)
    for _ in range(3):
        walks.step(choose(walks))
    for row in range(12):
        table = tables[walks.state.table[row]]
        plans = walks.state.plans[row, : table.num_layers, :WAY_OUT].T.copy()
        plans[:, :3] = walks.state.actions[row, :3]
        ratios, drops = PlanEstimator(table).estimate(plans)
        assert walks.outlook.promised[row] == pytest.approx(ratios, rel=1e-4)
        assert walks.outlook.promised_drop[row] == pytest.approx(drops, rel=1e-4)


def test_the_mask_keeps_every_cost_ceiling_of_demands_that_can_be_met(tables):
    """Where random choices have lost more accuracy than is allowed, breaking a cost ceiling may be the better end."""
    walks = start(tables, 256, seed=5)
    ceilings, max_drop = walks.state.demands.ceilings.copy(), walks.state.demands.max_drop.copy()
    finish(walks, at_random(5))
    held = (walks.state.spent <= ceilings * (1 + 1e-5)).all(1)
    assert np.isfinite(ceilings).sum() > 200
    assert (held | (walks.state.drop > max_drop)).mean() > 0.95
    assert np.isinf(max_drop).sum() > 30
    assert held[np.isinf(max_drop)].mean() > 0.98


def test_ceilings_that_only_ruin_holds_leave_the_better_plan_open():
    """Bytes may be broken by little, or held by a plan that loses far more accuracy than is allowed."""
    ruinous = 0
    for seed in range(12):
        table = synthetic_table(np.random.default_rng(seed), 8)
        estimator = PlanEstimator(table)
        least = estimator.estimate(least_plans(estimator.stack, 0)[:, :8])[0].min(0)[0]
        walks = start([table], 1, demand=Demand(0.2, max_storage=min(1.0, 1.02 * least)))
        promised, insisted = score_plans(
            walks.state.demands.per_plan(),
            *estimator.estimate(walks.state.plans[0, :8][:, [walks.outlook.star[0], WAY_OUT]].T),
        )[0]
        for layer in range(8):
            best = walks.state.plans[0, layer, walks.outlook.star]
            assert walks.outlook.masks[0, best]
            walks.step(best)
        assert walks.outcomes(np.array([0]))[2][0] > promised - 0.5
        ruinous += promised > insisted + 5.0
    assert ruinous >= 6


def test_what_only_the_best_price_can_finish_stays_open_and_holds(tables):
    """Random choices among what the mask allows, wherever it allows it for the best price's plan alone."""
    walks, choose, opened = start(tables, 256, seed=5), at_random(5), np.zeros(256, bool)
    ceilings, held = walks.state.demands.ceilings.copy(), np.ones(256, bool)
    while not walks.done.all():
        total = walks.state.spent[:, None] + walks.outlook.cost + walks.outlook.behind[:, :, 1]
        alone = (total <= ceilings[:, None] * (1 + 1e-5)).all(2)  # the way out would still hold
        held &= alone.any(1)
        more = walks.outlook.masks & ~alone & held[:, None]
        opened |= more.any(1)
        walks.step(np.where(more.any(1), more.argmax(1), choose(walks)))
    assert opened.sum() > 20
    assert (walks.state.spent <= ceilings * (1 + 1e-5)).all(1)[opened & held].mean() > 0.98


def test_masks_leave_it_to_the_score_where_nothing_holds(tables):
    walks = start(tables, 8, demand=Demand(max_storage=0.001))
    assert (walks.outlook.masks == walks.stack.legal[walks.state.table, 0]).all()
    finish(walks, at_random(0))
    assert not any(plan["demand_met"] for plan in walks.finished_plans(np.arange(8)))


def test_the_way_out_is_the_plan_nearest_to_the_ceilings():
    """Of those that are small whatever the ceilings, and those of the shadow prices under them."""
    better = 0
    for seed in range(12):
        table = synthetic_table(np.random.default_rng(seed), 8)
        estimator = PlanEstimator(table)
        ceilings = np.minimum(1.0, 1.1 * estimator.estimate(least_plans(estimator.stack, 0)[:, :8])[0].min(0))
        walks = start([table], 1, demand=Demand(max_storage=ceilings[0], max_latency=ceilings[1]))
        given = walks.state.plans[0, :8].T
        plans = given[walks.outlook.way_out], least_plans(estimator.stack, 0)[:, :8], given[:WAY_OUT]
        way_out, least, priced = ((estimator.estimate(each)[0] / ceilings)[:, :2].max(1).min() for each in plans)
        assert way_out == pytest.approx(min(least, priced), rel=1e-4)
        better += priced < 0.99 * least
    assert better


def test_least_reduced_cost_is_a_decent_plan(tables):
    def reduced(walks):
        return np.where(walks.outlook.masks, reduced_costs(walks)[:, 0], np.inf).argmin(1)

    planned = start(tables, 48, seed=7)
    promised = planned.outlook.potential.copy()
    rows = np.arange(48)
    planned = finish(planned, reduced).outcomes(rows)[2]
    random = finish(start(tables, 48, seed=7), at_random(7)).outcomes(rows)[2]
    assert (planned > random).mean() > 0.95
    assert np.median(planned - promised) > -0.05


def test_factors_change_prices_and_noise_stays_hidden(tables):
    rng = np.random.default_rng(0)
    depth = 5
    factors = {name: rng.lognormal(0, 0.3, (6, depth)).astype(np.float32) for name in ("drop", "truth")}
    cost_factor = rng.lognormal(0, 0.3, (6, depth, 3)).astype(np.float32)
    walks = start(tables[:1], 6, demand=Demand(None), **factors, cost=cost_factor)
    plain = start(tables[:1], 6, demand=Demand(None))
    assert walks.outlook.drops == pytest.approx(plain.outlook.drops * factors["drop"][:, :1])
    finish(walks, lambda w: np.zeros(6, int))
    assert walks.state.spent == pytest.approx(np.ones((6, 3)), rel=1e-5)  # the original costs what the original costs
    noisy = start(tables[:1], 6, demand=Demand(None), truth=factors["truth"])
    assert (noisy.outlook.drops == plain.outlook.drops).all()
    finish(noisy, at_random(1))
    assert (noisy.state.true_drop != noisy.state.drop).all()


def test_counting_moves_the_drop_that_is_seen_by_its_standard_error(tables):
    counting_noise = np.array([-1.0, -0.1, 0.0, 0.1, 1.0, 2.0])
    plain, noisy = (start(tables[:1], 6, demand=Demand(None), counting_noise=given) for given in (0.0, counting_noise))
    rows = np.arange(6)
    drops = [finish(walks, at_random(1)).outcomes(rows)[1] for walks in (plain, noisy)]
    error = np.sqrt(100.0 * np.maximum(drops[0], LEAST_CHANGED) / tables[0].samples)
    assert (drops[0] > 0).all()
    assert drops[1] == pytest.approx(np.minimum(drops[0] + counting_noise * error, plain.room))


def test_observations_are_bounded_and_named(tables):
    walks = start(tables, 16, seed=2)
    seen = Observer(walks.stack).observe(walks)
    assert seen["context"].shape == (16, len(CONTEXT_FEATURES))
    assert seen["recipes"].shape == (16, walks.stack.num_slots, len(ROW_FEATURES))
    for value in seen.values():
        assert np.isfinite(value).all()
        assert np.abs(value).max() <= LIMIT
    assert (seen["recipes"][..., -1] == walks.outlook.masks).all()
    assert (seen["recipes"][~walks.outlook.masks] == 0).all()
    assert len(set(CONTEXT_FEATURES)) == len(CONTEXT_FEATURES)
    assert len(set(ROW_FEATURES)) == len(ROW_FEATURES)


def test_the_same_network_looks_the_same_at_another_scale(tables):
    costs = ("cost", "border", "fixed", "original")
    big = dataclasses.replace(tables[1], **{name: getattr(tables[1], name) * 1000 for name in costs})
    demand = Demand(1.0, max_storage=0.3)
    seen = []
    for table in (tables[1], big):
        walks = start([table], 1, demand=demand)
        seen.append(Observer(walks.stack).observe(walks))
    for key in seen[0]:
        assert seen[0][key] == pytest.approx(seen[1][key], abs=1e-4)


def test_a_metric_below_zero_looks_like_an_accuracy(tables):
    """Bits per byte are negative points. What counts is the room between the original and guessing."""
    below = dataclasses.replace(tables[1], accuracy=tables[1].accuracy - 200.0, chance=tables[1].chance - 200.0)
    seen = [
        Observer(walks.stack).observe(walks) for walks in (start([table], 8, seed=1) for table in (tables[1], below))
    ]
    for key in seen[0]:
        assert seen[0][key] == pytest.approx(seen[1][key], abs=1e-4)


@pytest.mark.parametrize("room", [0.0, 1e6, np.inf])
def test_observations_are_bounded_whatever_guessing_comes_to(tables, room):
    """Of an R2 near zero a hundredth is little, so a poor plan loses a million points; some metrics have no worst."""
    odd = dataclasses.replace(tables[1], accuracy=-100.0, chance=-100.0 - room, drop=tables[1].drop * 1e5, samples=2)
    walks, choose = start([odd], 16, seed=2), at_random(2)
    for _ in range(odd.num_layers):
        for value in Observer(walks.stack).observe(walks).values():
            assert np.isfinite(value).all()
            assert np.abs(value).max() <= LIMIT
        assert np.isfinite(walks.outlook.potential).all()
        walks.step(choose(walks))
    assert np.isfinite(walks.outcomes(np.arange(16))[2]).all()


def test_sampled_demands_can_be_met(tables):
    walks = Walks(PriceStack(tables), 200)
    rng = np.random.default_rng(0)
    reachable = walks.place(np.arange(200), rng.integers(3, size=200))
    demands = [DemandSampler().sample(row, rng) for row in reachable]
    ceilings = Demands.of(demands).ceilings
    assert (reachable <= ceilings[:, None]).all(2).any(1).all()
    assert all(demand.accuracy_weight > 0 for demand in demands)
    assert {demand.max_accuracy_drop for demand in demands} == {0.5, 1.0, 2.0, 3.0, None}


def test_looking_ahead_changes_nothing(tables):
    """The outlook follows from the state alone, so it makes no difference when it is asked for, or whether at all."""
    walks, choose = start(tables, 24, seed=3), at_random(3)
    for _ in range(4):
        before = walks.get_state()
        again = look_ahead(walks.stack, walks.state)
        for field in dataclasses.fields(again):
            assert (getattr(again, field.name) == getattr(walks.outlook, field.name)).all(), field.name
        assert all((array == before[name]).all() for name, array in walks.get_state().items())
        walks.step(choose(walks))
    other = Walks(walks.stack, 24)
    other.set_state(walks.get_state())
    assert (other.outlook.masks == walks.outlook.masks).all()
    assert (other.outlook.potential == walks.outlook.potential).all()
