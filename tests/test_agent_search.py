"""The trained agent as a search method, on price lists of networks that do not exist."""

import dataclasses

import numpy as np
import pytest

from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.agent.search.agent_search import AgentSearch, walk
from plywise.compressors.errors import ConfigurationError
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import SurrogateEvaluator
from plywise.env.score.score import Demands, expected_scores
from plywise.env.score.surrogate import Surrogate
from plywise.env.walk.observation import CONTEXT_FEATURES, ROW_FEATURES
from plywise.env.walk.synthetic import synthetic_table

LAYERS = 10
DEMAND = Demand(2.0, max_storage=0.3)


@pytest.fixture(scope="module")
def table():
    return synthetic_table(np.random.default_rng(1), LAYERS)


@pytest.fixture(scope="module")
def agent():
    return RecipeAgent.untrained(len(CONTEXT_FEATURES), len(ROW_FEATURES), seed=0)


class Strict(SurrogateEvaluator):
    """Finds drops `times` as large as the price list says, and remembers the plans."""

    def __init__(self, table, demand, times):
        super().__init__(table, demand)
        self.times = times
        self.plans = []

    def evaluate(self, actions):
        self.plans.append(list(actions))
        outcome = super().evaluate(actions)
        return dataclasses.replace(outcome, drop=self.times * outcome.drop)


@pytest.mark.parametrize("budget", [1, 3, 8])
def test_it_keeps_to_its_budget(agent, table, budget):
    evaluator = SurrogateEvaluator(table, DEMAND)
    result = AgentSearch(agent).search(evaluator, budget, seed=0)
    assert 1 <= result.evaluations <= budget
    assert result.evaluations == evaluator.evaluations == len(result.history)
    assert list(result.history) == sorted(result.history)
    assert result.history[-1] == result.outcome.score
    assert table.legal[range(LAYERS), result.actions].all()
    assert SurrogateEvaluator(table, DEMAND).evaluate(result.actions) == result.outcome


def test_a_budget_of_nothing_is_refused(agent, table):
    with pytest.raises(ConfigurationError, match="budget=0"):
        AgentSearch(agent).search(SurrogateEvaluator(table, DEMAND), 0, seed=0)


def test_a_single_walk_is_the_agents_best_whatever_the_seed(agent, table):
    plans = [AgentSearch(agent, 1).search(SurrogateEvaluator(table, DEMAND), 1, seed).actions for seed in (0, 1)]
    assert plans[0] == plans[1]


def expected_of(table, plans):
    return expected_scores(Demands.of([DEMAND]), *Surrogate(table).estimate(np.array(plans)))


def test_walks_on_paper_come_sorted_by_what_is_expected_of_them(agent, table):
    plans = walk(agent, Surrogate(table), DEMAND, 16, np.random.default_rng(0))
    assert len(set(plans)) == len(plans) > 1
    assert (np.diff(expected_of(table, plans)) <= 0).all()


def test_of_more_walks_on_paper_never_less_is_expected(agent, table):
    one, many = (AgentSearch(agent, count).search(SurrogateEvaluator(table, DEMAND), 1, 0).actions for count in (1, 64))
    assert expected_of(table, [many])[0] >= expected_of(table, [one])[0]


def test_equal_seeds_give_equal_results_and_other_seeds_draw_others(agent, table):
    plans = []
    for seed in (3, 3, 4):
        evaluator = Strict(table, DEMAND, 1.0)
        AgentSearch(agent).search(evaluator, 6, seed)
        plans.append(evaluator.plans)
    assert plans[0] == plans[1] != plans[2]


def test_the_best_plan_wins_not_the_last(agent, table):
    evaluator = Strict(table, DEMAND, 1.0)
    result = AgentSearch(agent).search(evaluator, 8, seed=0)
    scores = [SurrogateEvaluator(table, DEMAND).evaluate(plan).score for plan in evaluator.plans]
    assert result.outcome.score == max(scores) > min(scores)


@pytest.fixture(scope="module")
def mild():
    """A price list whose drops are of a few points, so that four times as much is still possible."""
    table = synthetic_table(np.random.default_rng(1), LAYERS)
    return dataclasses.replace(table, drop=np.minimum(table.drop, 1.0) + np.float32(0.05))


def test_walks_after_a_surprise_see_larger_drops(agent, mild, monkeypatch):
    """Where a plan loses four times what was promised, the next walk sees more of it at every layer."""
    seen, plans = [], []

    def watching(agent, surrogate, demand, count, generator):
        seen.append(surrogate.table.drop)
        plans.append(walk(agent, surrogate, demand, count, generator))
        return plans[-1]

    monkeypatch.setattr("plywise.agent.search.agent_search.walk", watching)
    AgentSearch(agent).search(Strict(mild, DEMAND, 4.0), 4, seed=0)
    assert (seen[0] == mild.drop).all()
    assert (seen[1] > seen[0]).all()
    first, later = (mild.drop[range(LAYERS), best].sum() for best, *_ in plans)
    assert later < first


def test_it_gives_up_where_nothing_is_new(agent):
    table = synthetic_table(np.random.default_rng(0), 2, num_slots=2)
    result = AgentSearch(agent).search(SurrogateEvaluator(table, Demand(None)), 50, seed=0)
    assert result.evaluations <= 4
