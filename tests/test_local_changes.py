"""Local changes of the best plans so far, chosen by what they promise."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import norm

from plywise.agent.search.guided import STARTS, Guided
from plywise.agent.search.knapsack import Knapsack
from plywise.agent.search.local_changes import CHANGED, expected_improvements, neighbours
from plywise.agent.search.search_method import CountedSearch
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import SurrogateEvaluator
from plywise.env.score.score import Demands, Outcome
from plywise.env.walk.synthetic import synthetic_table

LAYERS = 8
DEMAND = Demand(1.0, max_storage=0.15)


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_neighbours_are_legal_and_differ_in_few_layers(generator) -> None:
    table = synthetic_table(generator, LAYERS)
    plans = np.zeros((2, LAYERS), np.int64)
    plans[1] = table.legal[:, ::-1].argmax(1)
    plans[1] = table.num_slots - 1 - plans[1]  # the last legal ones
    found = neighbours(table, plans, 500, generator)
    assert table.legal[np.arange(LAYERS), found].all()
    changed = (found[:, None] != plans).sum(2).min(1)
    assert changed.max() == CHANGED
    assert len(np.unique(found, axis=0)) > 300


def test_what_a_plan_promises_grows_with_its_spread_where_its_mean_is_worse() -> None:
    ratios = np.full((3, 3), 0.1)
    gains = expected_improvements(
        Demands.of([DEMAND]), ratios, np.array([3.0, 3.0, 0.0]), np.array([0.1, 3.0, 0.1]), best=0.5
    )
    assert gains[0] < gains[1] < gains[2]


def test_the_improvement_is_its_mean_over_normal_drops() -> None:
    demand = Demand(None, accuracy_weight=1.0, storage_weight=0.0, latency_weight=0.0)
    (gain,) = expected_improvements(Demands.of([demand]), np.ones((1, 3)), np.array([3.0]), np.array([0.5]), best=-3.0)
    assert gain == pytest.approx(0.5 * norm.pdf(0.0), rel=0.03)  # of max(0, z), with z normal of deviation 0.5


def test_the_integer_program_comes_first() -> None:
    evaluator = SurrogateEvaluator(synthetic_table(np.random.default_rng(1), LAYERS), DEMAND)
    guided, knapsack = (method.search(evaluator, STARTS, seed=0) for method in (Guided(), Knapsack()))
    assert guided.history == knapsack.history


class Wrong(SurrogateEvaluator):
    """Scores by other drops than those of the price table that searches read."""

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        told = synthetic_table(generator, LAYERS)
        factors = np.exp(generator.normal(0.0, 1.0, LAYERS)).astype(np.float32)
        super().__init__(told, DEMAND)
        self._real = SurrogateEvaluator(dataclasses.replace(told, drop=told.drop * factors[:, None]), DEMAND)

    def evaluate(self, actions) -> Outcome:
        self.evaluations += 1
        return self._real.evaluate(actions)


def test_it_beats_the_integer_program_where_the_price_table_is_wrong() -> None:
    gains = []
    for seed in range(3):
        guided, knapsack = (method.search(Wrong(seed), 16, seed=0).outcome.score for method in (Guided(), Knapsack()))
        gains.append(guided - knapsack)
    assert np.mean(gains) > 0.0
    assert min(gains) > -0.05


def test_plans_scored_come_best_first() -> None:
    table = synthetic_table(np.random.default_rng(1), LAYERS)
    counted = CountedSearch(SurrogateEvaluator(table, DEMAND), 3)
    plans = neighbours(table, np.zeros((1, LAYERS), np.int64), 3, np.random.default_rng(0)).tolist()
    scores = {tuple(plan): counted.evaluate(plan).score for plan in plans}
    assert counted.ranked == sorted(scores, key=lambda plan: -scores[plan])
