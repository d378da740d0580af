import itertools
import math

import numpy as np
import pytest

from plywise.compressors.errors import ConfigurationError, DemandError
from plywise.env.prices.prices import METRICS
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import PlanEstimator, SurrogateEvaluator, check_demand
from plywise.env.score.score import (
    COST_RATE,
    DROP_RATE,
    KNEE,
    Demands,
    expected_scores,
    judge,
    linear_then_log,
    score_of,
    score_plans,
)
from plywise.env.walk.synthetic import synthetic_table


def test_score_follows_its_formula():
    demand = Demand(1.0, max_storage=0.1, storage_weight=0.5, latency_weight=0.25)
    expected = 0.5 * math.log(10) + 0.25 * math.log(2) - 0.5
    assert score_of(demand, (0.1, 0.5, 1.0), 0.5) == pytest.approx(expected)
    assert score_of(demand, (0.1, 0.5, 1.0), -0.5) == pytest.approx(expected + 0.5)  # a gain is worth nothing extra


def test_broken_ceilings_cost_what_the_formula_says():
    demand = Demand(1.0, max_storage=0.1, storage_weight=0.5, latency_weight=0.0)
    held, over = score_of(demand, (0.1, 1, 1), 1.0), score_of(demand, (0.11, 1, 1), 3.0)
    lost = 0.5 * math.log(1.1) + 2.0
    penalty = 1.5 * (1 + linear_then_log(COST_RATE * math.log(1.1)) + 1 + DROP_RATE * 2)
    assert held - over == pytest.approx(lost + penalty)


def test_losses_beyond_the_knee_count_less_but_still_count():
    losses = np.array([0.0, 1.0, KNEE, KNEE + 1e-6, 2 * KNEE, 80.0, 81.0])
    counted = linear_then_log(losses)
    assert (counted[:3] == losses[:3]).all()
    assert (np.diff(counted) > 0).all()
    assert counted[-1] < 20


def test_expected_scores_are_means_over_what_may_be_seen():
    demand, ratios = Demands.of([Demand(1.0, max_storage=0.2)]), np.array([[0.1, 0.9, 0.8]])
    normal = np.random.default_rng(0).normal(size=100_000)
    for drop, spread in ((0.0, 0.1), (0.4, 0.4), (0.8, 0.2), (3.0, 1.0)):
        outcomes = drop + spread * normal
        mean = score_plans(demand, np.repeat(ratios, len(normal), 0), outcomes).mean()
        found = expected_scores(demand, ratios, np.array([drop]), np.array([spread]))[0]
        assert found == pytest.approx(mean, rel=0.03, abs=0.03)


def test_a_plan_just_below_a_ceiling_is_expected_to_score_less_than_a_safer_one():
    demands, ratios = Demands.of([Demand(0.5, storage_weight=1.0)]), np.array([[0.10, 1, 1], [0.14, 1, 1]])
    drops, spreads = np.array([0.4, 0.1]), np.array([0.3, 0.1])
    assert np.argmax(score_plans(demands, ratios, drops)) == 0
    assert np.argmax(expected_scores(demands, ratios, drops, spreads)) == 1


def test_outcome_names_what_is_broken():
    outcome = judge(Demand(1.0, max_storage=0.1, max_latency=0.9), (100, 2, 4), (20, 1, 4), 1.5)
    assert outcome.violations == pytest.approx({"storage": 0.1, "accuracy_drop": 0.5})
    assert not outcome.demand_met
    assert judge(Demand(0.0, max_storage=0.2), (100, 2, 4), (20, 1, 4), 0.0).demand_met


def test_a_cost_that_is_no_number_meets_no_demand():
    outcome = judge(Demand(1.0, max_latency=0.5), (100, 2, 4), (20, math.nan, 4), 0.0)
    assert not outcome.demand_met
    assert outcome.violations == {"latency": math.inf}
    assert outcome.score == -math.inf


def test_many_plans_score_as_one_by_one():
    rng = np.random.default_rng(0)
    demands = [Demand(1.0, max_latency=0.4, energy_weight=0.3), Demand(None, max_storage=0.2)]
    ratios, drops = rng.uniform(0.05, 1, (2, 7, 3)), rng.uniform(0, 3, (2, 7))
    scores = score_plans(Demands.of(demands).per_plan(), ratios, drops)
    for row, plan in itertools.product(range(2), range(7)):
        assert scores[row, plan] == pytest.approx(score_of(demands[row], ratios[row, plan], drops[row, plan]), rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_breaking_a_ceiling_never_pays_where_it_can_be_held(seed):
    table = synthetic_table(np.random.default_rng(seed), 4, num_slots=9)
    plans = np.array([p for p in itertools.product(range(9), repeat=4) if table.legal[range(4), p].all()])
    ratios, drops = PlanEstimator(table).estimate(plans)
    for demand in (Demand(2.0, max_storage=0.3), Demand(1.0), Demand(5.0, max_storage=0.4, max_latency=0.95)):
        held = (drops <= demand.max_accuracy_drop) & (ratios <= [c or 9 for c in demand.ceilings]).all(1)
        best = score_plans(Demands.of([demand]), ratios, drops).argmax()
        assert held.any()
        assert held[best]


def test_surrogate_counts_and_refuses_plans_that_do_not_fit():
    table = synthetic_table(np.random.default_rng(0), 5)
    evaluator = SurrogateEvaluator(table, Demand())
    assert evaluator.evaluate([0] * 5).ratios == pytest.approx((1, 1, 1))
    with pytest.raises(ConfigurationError, match="give one each"):
        evaluator.evaluate([0] * 4)
    with pytest.raises(ConfigurationError, match="layer2 is not one of"):
        evaluator.evaluate([0, 0, 99, 0, 0])
    assert evaluator.evaluations == 1


def least_reachable(table):
    """For each metric the least share of the original's cost that a known plan reaches."""
    estimator = PlanEstimator(table)
    return dict(zip(METRICS, estimator.estimate(estimator.least())[0].min(0).tolist(), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_least_reachable_is_nearly_the_least_of_all_plans(seed):
    table = synthetic_table(np.random.default_rng(seed), 5, num_slots=8)
    plans = np.array([p for p in itertools.product(range(8), repeat=5) if table.legal[range(5), p].all()])
    true = PlanEstimator(table).estimate(plans)[0].min(0)
    least = np.array([least_reachable(table)[name] for name in METRICS])
    assert (least >= true - 1e-6).all()
    assert least == pytest.approx(true, rel=0.03)


def test_ceilings_that_no_known_plan_holds_at_once_are_told():
    table = synthetic_table(np.random.default_rng(0), 8)
    least = least_reachable(table)
    tight = Demand(1.0, max_storage=least["storage"] * 1.0001, max_latency=least["latency"] * 1.0001)
    with pytest.warns(UserWarning, match="each of max_storage, max_latency can be held, but no plan is known"):
        check_demand(table, tight)
    check_demand(table, Demand(1.0, max_storage=least["storage"] * 1.0001))


def test_a_demand_out_of_reach_is_refused_with_what_is_reachable():
    table = synthetic_table(np.random.default_rng(0), 6)
    least = least_reachable(table)["storage"]
    check_demand(table, Demand(max_storage=least * 1.001))
    with pytest.raises(DemandError, match=r"max_storage=0.001 \(reachable: ") as refused:
        check_demand(table, Demand(max_storage=0.001))
    told = float(str(refused.value).partition("reachable: ")[2].partition(")")[0])
    assert least <= told <= 1.01 * least
    check_demand(table, Demand(max_storage=told))
