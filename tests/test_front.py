"""The front of one network over accuracy and costs, and what can be had within an accuracy ceiling."""

import dataclasses
import itertools

import numpy as np
import pytest

from plywise.agent.search.attainable import attainable, check_attainable, scored_least, what_was_attainable
from plywise.agent.search.front import FrontSearch, front_demands, knee, table_front, unbeaten
from plywise.compressors.errors import DemandError
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import PlanEstimator, SurrogateEvaluator
from plywise.env.score.surrogate import Surrogate
from plywise.env.walk.synthetic import synthetic_table

LAYERS, SLOTS = 5, 6
MOST = 5.0


@pytest.fixture(scope="module")
def table():
    return synthetic_table(np.random.default_rng(3), LAYERS, num_slots=SLOTS)


@pytest.fixture(scope="module")
def every_plan(table):
    """Costs and drops of all plans that there are."""
    plans = itertools.product(range(SLOTS), repeat=LAYERS)
    return PlanEstimator(table).estimate(np.array([p for p in plans if table.legal[range(LAYERS), p].all()]))


def found(table, budget=24, seed=0):
    search = FrontSearch(SurrogateEvaluator(table, Demand(None)), MOST)
    return list(search.points(budget, seed))


def test_points_are_within_the_budget_and_none_comes_twice(table) -> None:
    points = found(table)
    assert len({point.actions for point in points}) == len(points) == 24
    assert {point.found_by for point in points} <= {"uniform", "knapsack", "local change"}
    assert all(table.legal[range(LAYERS), point.actions].all() for point in points)


def test_the_front_is_near_that_of_all_plans(table, every_plan) -> None:
    """For each demand, the best plan found loses at most little against the best of all."""
    ratios, drops = every_plan
    points = found(table)
    for ceiling, metric in itertools.product((1.0, 5.0), (0, 1)):
        best = ratios[drops <= ceiling, metric].min()
        reached = min(point.outcome.ratios[metric] for point in points if point.outcome.drop <= ceiling)
        assert reached <= 1.1 * best


def test_equal_seeds_give_equal_points(table) -> None:
    assert found(table, 6, seed=1) == found(table, 6, seed=1)


def test_the_search_ends_where_nothing_is_new() -> None:
    tiny = synthetic_table(np.random.default_rng(0), 2, num_slots=2)
    assert len(found(tiny, 100)) <= 3


def test_demands_grow_with_the_most_that_may_be_lost() -> None:
    assert max(demand.max_accuracy_drop for demand in front_demands(8.0)) == 8.0
    assert front_demands(5.0)[0].max_accuracy_drop == 1.0
    assert {demand.latency_weight for demand in front_demands(1.0)} == {0.0, 0.5, 1.0}


def test_unbeaten_rows_are_those_that_no_other_matches() -> None:
    rows = [(1, 4), (2, 2), (2, 2), (3, 3), (4, 1), (np.nan, 0)]
    assert unbeaten(rows).tolist() == [True, True, False, False, True, False]
    assert unbeaten([]).tolist() == []


def test_the_knee_is_where_savings_begin_to_cost() -> None:
    assert knee([1.0, 0.2, 0.1, 0.09], [0.0, 0.1, 0.3, 5.0]) == 2
    assert knee([0.5], [1.0]) == 0


def test_the_table_alone_gives_a_front(table, every_plan) -> None:
    ratios, drops, spreads = table_front(table, MOST)
    assert ratios[drops <= 1.0, 0].min() <= 1.1 * every_plan[0][every_plan[1] <= 1.0, 0].min()
    assert (spreads >= 0).all()


def test_the_least_cost_is_that_within_the_accuracy_ceiling(table, every_plan) -> None:
    ratios, drops = every_plan
    tight = attainable(Surrogate(table), Demand(1.0, max_storage=0.01, max_latency=0.5))
    assert list(tight) == ["storage", "latency"]
    for metric, name in enumerate(tight):
        best = ratios[drops <= 1.0, metric].min()
        assert best <= tight[name].share <= 1.05 * best
        assert tight[name].low <= tight[name].share <= tight[name].high
    (free,) = attainable(Surrogate(table), Demand(None, max_storage=0.01)).values()
    assert free.share == pytest.approx(ratios[:, 0].min(), rel=0.02)
    assert free.share < tight["storage"].share


def test_where_nothing_holds_the_ceiling_the_original_does(table) -> None:
    lossy = dataclasses.replace(table, drop=table.drop + np.where(np.arange(SLOTS) > 0, 50, 0).astype(np.float32))
    (found_least,) = attainable(Surrogate(lossy), Demand(0.1, max_storage=0.5)).values()
    assert found_least.share == pytest.approx(1.0)
    assert found_least.high == 1.0


def test_exact_scores_say_what_was_reached(table) -> None:
    evaluator = SurrogateEvaluator(table, Demand(None))
    outcomes = [evaluator.evaluate([0] * LAYERS), *(point.outcome for point in found(table, 8))]
    asked = Demand(1.0, max_storage=0.01)
    held = [outcome.ratios[0] for outcome in outcomes if outcome.drop <= 1.0]
    assert scored_least(outcomes, asked) == {"storage": min(held)}
    stopped = [dataclasses.replace(outcome, seen=0.5) for outcome in outcomes]
    assert scored_least(stopped, asked) == {}


def test_a_refusal_says_what_can_be_had_within_the_accuracy_ceiling(table) -> None:
    least = attainable(Surrogate(table), Demand(1.0, max_storage=0.5))["storage"]
    with pytest.raises(
        DemandError, match=rf"reachable: .*within a drop of 1 points, .*storage of about {least.share:.3f}"
    ):
        check_attainable(table, Demand(1.0, max_storage=1e-4))


def test_a_ceiling_that_costs_too_much_accuracy_is_told_before_the_search(table, every_plan) -> None:
    ratios, drops = every_plan
    between = (ratios[:, 0].min() + ratios[drops <= 0.5, 0].min()) / 2
    assert "may be out of reach: within a drop of 0.5 points" in check_attainable(
        table, Demand(0.5, max_storage=float(between))
    )
    assert check_attainable(table, Demand(5.0, max_storage=0.9)) is None
    assert check_attainable(table, Demand(None)) is None


def test_the_report_holds_estimates_that_have_learned_and_what_was_scored(table) -> None:
    evaluator, demand = SurrogateEvaluator(table, Demand(None)), Demand(1.0, max_storage=0.01)
    points = found(table, 8)
    told = what_was_attainable(table, demand, [(point.actions, point.outcome) for point in points])
    assert set(told["storage"]) == {"share", "low", "high", "scored"}
    assert told["storage"]["scored"] == scored_least([point.outcome for point in points], demand)["storage"]
    lossy = [(point.actions, dataclasses.replace(point.outcome, drop=50.0)) for point in points]
    after = what_was_attainable(table, demand, lossy)["storage"]
    assert "scored" not in after
    assert after["share"] > told["storage"]["share"]
    assert what_was_attainable(table, Demand(1.0), []) == {}
    assert evaluator.evaluations == 0
