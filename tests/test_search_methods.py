import ctypes
import dataclasses
import itertools
import os

import numpy as np
import pytest

from plywise.agent.search import knapsack
from plywise.agent.search.methods import SEARCH_METHODS
from plywise.agent.search.search_method import UNIFORM_SCORES, CountedSearch
from plywise.agent.search.uniform_plans import uniform_plans
from plywise.compressors.errors import ConfigurationError
from plywise.env.prices.prices import RECIPE_FEATURES
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import PlanEstimator, SurrogateEvaluator
from plywise.env.score.score import Demands, judge, score_plans
from plywise.env.walk.synthetic import synthetic_table


@pytest.fixture(scope="module")
def table():
    return synthetic_table(np.random.default_rng(1), 12)


@pytest.mark.parametrize("name", SEARCH_METHODS)
@pytest.mark.parametrize("budget", [1, 7, 20])
def test_every_method_keeps_to_its_budget(name, budget, table):
    evaluator = SurrogateEvaluator(table, Demand(1.0, max_storage=0.2))
    result = SEARCH_METHODS[name].search(evaluator, budget, seed=0)
    assert 1 <= result.evaluations <= budget
    assert result.evaluations == evaluator.evaluations == len(result.history)
    assert list(result.history) == sorted(result.history)
    assert result.history[-1] == result.outcome.score
    assert table.legal[range(12), result.actions].all()
    assert SurrogateEvaluator(table, evaluator.demand).evaluate(result.actions) == result.outcome


@pytest.mark.parametrize("name", SEARCH_METHODS)
def test_equal_seeds_give_equal_results(name, table):
    demand = Demand(2.0, max_storage=0.15)
    first, second = (SEARCH_METHODS[name].search(SurrogateEvaluator(table, demand), 12, seed=3) for _ in range(2))
    assert first == second


def test_registry_names_are_the_methods_names():
    assert list(SEARCH_METHODS) == ["random", "uniform", "greedy", "knapsack", "guided"]
    assert all(method.name == name for name, method in SEARCH_METHODS.items())


def test_a_budget_of_nothing_is_refused(table):
    with pytest.raises(ConfigurationError, match="budget=0"):
        SEARCH_METHODS["random"].search(SurrogateEvaluator(table, Demand()), 0, seed=0)


def test_random_search_stops_where_nothing_is_new():
    table = synthetic_table(np.random.default_rng(0), 2, num_slots=2)
    result = SEARCH_METHODS["random"].search(SurrogateEvaluator(table, Demand(None)), 500, seed=0)
    assert result.evaluations <= 4


def test_uniform_plans_use_one_recipe_where_it_is_legal(table):
    for plan in uniform_plans(table):
        used = {table.recipes[layer][slot] for layer, slot in enumerate(plan)} - {"identity"}
        assert len(used) <= 1


def test_uniform_plans_of_formats_alone_change_no_shapes(table):
    plans = uniform_plans(table, formats_only=True)
    assert 1 < len(plans) < len(uniform_plans(table))
    for plan in plans:
        features = table.recipe_features[range(12), plan]
        assert (
            features[:, [RECIPE_FEATURES.index(name) for name in ("pruning_ratio", "rank_ratio", "sparsity")]] == 0
        ).all()


def test_a_layer_without_integer_kernels_takes_the_rest_of_a_uniform_recipe(table):
    names = ("identity", "uniform_quantization(bits=4)", "uniform_quantization(bits=4) + activation_quantization")
    menus = [names, names[:2], names[:1]]
    features = np.zeros((3, 3, len(RECIPE_FEATURES)), np.float32)
    legal = np.array([[slot < len(menu) for slot in range(3)] for menu in menus])
    few = dataclasses.replace(table, recipes=tuple(menus), legal=legal, recipe_features=features)
    assert uniform_plans(few, formats_only=True).tolist() == [[0, 0, 0], [1, 1, 0], [2, 1, 0]]


@pytest.mark.parametrize("name", SEARCH_METHODS)
def test_no_method_ends_below_the_best_uniform_plan_it_starts_from(name, table):
    demand = Demand(1.0, max_storage=0.2)
    evaluator = SurrogateEvaluator(table, demand)
    result = SEARCH_METHODS[name].search(evaluator, 2, seed=0, from_uniform=True)
    assert result.evaluations <= 2
    assert 1 <= evaluator.evaluations - result.evaluations <= UNIFORM_SCORES
    assert result.outcome.score >= SurrogateEvaluator(table, demand).evaluate(result.uniform).score
    assert any((plan == result.uniform).all() for plan in uniform_plans(table, formats_only=True))


@pytest.mark.parametrize("seed", range(5))
def test_knapsack_finds_the_best_of_all_plans_at_once(seed):
    table = synthetic_table(np.random.default_rng(seed), 5, num_slots=7)
    plans = np.array([p for p in itertools.product(range(7), repeat=5) if table.legal[range(5), p].all()])
    ratios, drops = PlanEstimator(table).estimate(plans)
    for demand in (Demand(1.0), Demand(3.0, max_storage=0.35), Demand(None, max_storage=0.3, max_latency=0.9)):
        best = score_plans(Demands.of([demand]), ratios, drops).max()
        found = SEARCH_METHODS["knapsack"].search(SurrogateEvaluator(table, demand), 1, seed=0)
        assert found.evaluations == 1
        assert found.outcome.score == pytest.approx(best, abs=0.05)


@pytest.mark.parametrize("seed", [0, 2, 4, 6])
def test_knapsack_uses_up_a_ceiling_on_accuracy_though_drops_saturate(seed):
    """The layers may lose more points together than their plan may."""
    table = synthetic_table(np.random.default_rng(seed), 5, num_slots=7)
    table = dataclasses.replace(table, drop=10 * table.drop)
    plans = np.array([p for p in itertools.product(range(7), repeat=5) if table.legal[range(5), p].all()])
    demand = Demand(35.0, accuracy_weight=0.0, storage_weight=1.0, latency_weight=0.0)
    best = score_plans(Demands.of([demand]), *PlanEstimator(table).estimate(plans)).max()
    found = SEARCH_METHODS["knapsack"].search(SurrogateEvaluator(table, demand), 1, seed=0)
    assert found.outcome.score == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_knapsack_prices_borders_together(seed):
    """Where borders cost much, number formats must be chosen for layers that read each other, not one by one."""
    table = synthetic_table(np.random.default_rng(seed), 5, num_slots=7)
    table = dataclasses.replace(table, border=4 * table.border + np.float32(0.05 * table.original[1]))
    plans = np.array([p for p in itertools.product(range(7), repeat=5) if table.legal[range(5), p].all()])
    ratios, drops = PlanEstimator(table).estimate(plans)
    for demand in (Demand(3.0, latency_weight=1.0), Demand(None, max_latency=0.9 * ratios[0, 1])):
        best = score_plans(Demands.of([demand]), ratios, drops).max()
        found = SEARCH_METHODS["knapsack"].search(SurrogateEvaluator(table, demand), 1, seed=0)
        assert found.outcome.score == pytest.approx(best, abs=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_one_knapsack_plan_beats_the_others_on_estimates(seed):
    table = synthetic_table(np.random.default_rng(seed), 25)
    demand = Demand(3.0, max_storage=0.15)
    found = {
        name: method.search(SurrogateEvaluator(table, demand), 1 if name == "knapsack" else 60, seed=0).outcome.score
        for name, method in SEARCH_METHODS.items()
        if name != "guided"  # which begins with the same plan
    }
    assert max(found, key=found.__getitem__) == "knapsack"
    assert found["greedy"] > found["random"]


def test_greedy_never_ends_beyond_the_accuracy_ceiling(table):
    result = SEARCH_METHODS["greedy"].search(SurrogateEvaluator(table, Demand(0.5)), 400, seed=0)
    assert result.outcome.drop <= 0.5
    assert result.outcome.score > 0


class Surprising(SurrogateEvaluator):
    """Latencies turn out to be a tenth below their estimates, and one plan loses nothing."""

    def __init__(self, table, demand, harmless):
        super().__init__(table, demand)
        self.harmless = harmless

    def evaluate(self, actions):
        outcome = super().evaluate(actions)
        ratios = (outcome.ratios[0], 0.9 * outcome.ratios[1], outcome.ratios[2])
        return judge(self.demand, np.ones(3), np.array(ratios), 0.0 if list(actions) == self.harmless else outcome.drop)


def test_the_best_uniform_plan_is_found_where_latencies_are_estimated_too_high(table):
    """By their estimates all plans break the ceiling; the first that is timed shows that those of its graph hold it."""
    plans = uniform_plans(table, formats_only=True)
    slots = plans.T  # one latency for all slots of these plans but identity, as number formats have
    cost = table.cost.copy()
    for layer in range(table.num_layers):
        cost[1, layer, slots[layer][slots[layer] > 0]] = 0.5 * cost[1, layer, 0, 0, 0]
    drop = np.minimum(table.drop, np.float32(0.03))
    table = dataclasses.replace(table, cost=cost, drop=drop, border=np.zeros_like(table.border))
    ratios, drops = PlanEstimator(table).estimate(plans)
    same = np.isclose(ratios[:, 1], ratios[:, 1].min(), rtol=1e-6)
    assert same.sum() > 2
    harmless = plans[same][ratios[same, 0].argmin()].tolist()  # the smallest, of which no good is expected
    assert drops[plans.tolist().index(harmless)] > 0.2
    demand = Demand(None, max_latency=0.95 * float(ratios[:, 1].min()))
    counted = CountedSearch(Surprising(table, demand, harmless), 1)
    counted.start_uniform()
    assert list(counted.result().actions) == harmless


def test_what_the_solver_prints_about_itself_stays_off_the_console(table, monkeypatch, capfd):
    milp, printed = knapsack.milp, ctypes.CDLL(None).printf

    def talkative(*arguments, **options):
        printed(b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();\n")
        os.write(1, b"of another thread\n")
        return milp(*arguments, **options)

    monkeypatch.setattr(knapsack, "milp", talkative)
    print("before")
    SEARCH_METHODS["knapsack"].search(SurrogateEvaluator(table, Demand(1.0, max_storage=0.2)), 1, seed=0)
    print("after")
    said = capfd.readouterr().out.splitlines()
    assert (said[0], said[-1]) == ("before", "after")
    assert set(said[1:-1]) == {"of another thread"}
