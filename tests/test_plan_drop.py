"""What a plan loses: one model, whoever estimates."""

import dataclasses

import numpy as np
import pytest

from plywise.env.prices.price_stack import PriceStack
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import PlanEstimator
from plywise.env.score.plan_drop import LEAST_ROOM, drop_growth, most_total, plan_drop
from plywise.env.score.score import Demands
from plywise.env.score.surrogate import Surrogate
from plywise.env.walk.synthetic import synthetic_table
from plywise.env.walk.walk import Walks

LAYERS, PLANS = 6, 32


@pytest.mark.parametrize("times", [1.0, 30.0])
def test_walk_evaluator_and_surrogate_lose_alike(times):
    table = synthetic_table(np.random.default_rng(0), LAYERS)
    table = dataclasses.replace(table, drop=times * table.drop)
    walks, rng = Walks(PriceStack([table]), PLANS), np.random.default_rng(1)
    rows = np.arange(PLANS)
    walks.place(rows, np.zeros(PLANS, int))
    walks.start(rows, Demands.of([Demand(None)] * PLANS))
    for _ in range(LAYERS):
        walks.step((walks.outlook.masks * rng.random(walks.outlook.masks.shape)).argmax(1))
    estimated = PlanEstimator(table).estimate(walks.state.actions)[1]
    assert (estimated < table.accuracy - table.chance).all()
    assert estimated.max() > min(times, 10.0)
    assert walks.outcomes(rows)[1] == pytest.approx(estimated, rel=1e-4)
    assert Surrogate(table).estimate(walks.state.actions)[1] == pytest.approx(estimated, rel=1e-4)


def test_small_drops_add_up_and_none_exceeds_the_room():
    assert plan_drop(np.array([0.0, 0.1]), 80.0) == pytest.approx([0.0, 0.1], rel=2e-3)
    assert (plan_drop(np.array([1e3, 1e9]), 80.0) <= 80.0).all()
    assert plan_drop(np.array([1e9]), 0.0) <= LEAST_ROOM


def test_its_growth_and_its_inverse_are_its_own():
    total = np.array([0.0, 1.0, 30.0, 500.0])
    step = 1e-4
    slope = (plan_drop(total + step, 80.0) - plan_drop(total, 80.0)) / step
    assert drop_growth(total, 80.0) == pytest.approx(slope, rel=1e-3)
    assert [most_total(drop, 80.0) for drop in plan_drop(total, 80.0).tolist()] == pytest.approx(total)
    assert most_total(80.0, 80.0) == np.inf
