"""Pins of quality: what comes out for one fixed network, on a declared device, so that no time is measured.

Bounds are what was reached with three seeds of training and three of calibration, less a margin that each test names;
the 360 validation images make a step of 0.28 points.
"""

import numpy as np
import pytest

from plywise.agent.learning.ppo import PPOSettings, train
from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.agent.search.agent_search import AgentSearch
from plywise.agent.search.methods import SEARCH_METHODS
from plywise.agent.search.uniform_plans import uniform_plans
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.env.costs.devices import open_device
from plywise.env.exact_evaluator import ExactEvaluator
from plywise.env.recovery.recovery import recover
from plywise.env.recovery.recovery_settings import RecoverySettings
from plywise.env.recovery.training_data import AugmentedImages
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import PlanEstimator, SurrogateEvaluator
from plywise.env.walk.demand_sampler import DemandSampler
from plywise.env.walk.observation import CONTEXT_FEATURES, ROW_FEATURES
from plywise.env.walk.synthetic import synthetic_table
from plywise.env.walk.vector_env import BatchedCompressionEnv
from plywise.experiments.commands.study import study
from plywise.experiments.data.datasets import load_dataset

DEMANDS = (
    Demand(1.0, max_storage=0.1),
    Demand(1.0, max_storage=0.05),
    Demand(2.0, max_storage=0.03),
    Demand(0.5, max_latency=0.7),
    Demand(2.0, max_storage=0.1, max_latency=0.7),
    Demand(2.0, max_energy=0.3),
)
LESSONS = PPOSettings(total_steps=8192, num_envs=64, n_steps=32, minibatch=512, epochs=4, learning_rate=3e-3, hidden=32)
STORAGE, LATENCY, ENERGY = range(3)


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def subject(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLYWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = study("digits-plain", data, progress=False, latency=open_device("raspberry-pi-4")).subject
        assert found.accuracy > 97.0  # 98.1 to 98.9 were reached
        yield found


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """An agent that has learned for some seconds, on price tables of networks that do not exist."""
    tables = [synthetic_table(np.random.default_rng(i), 4 + i % 6, name=f"made-up-{i}") for i in range(16)]
    env = BatchedCompressionEnv(tables, DemandSampler(), LESSONS.num_envs, seed=0)
    return train(env, LESSONS, tmp_path_factory.mktemp("agent"), progress=False)


class Recorder(SurrogateEvaluator):
    """Remembers the plans that it scores."""

    def __init__(self, table):
        super().__init__(table, Demand())
        self.plans = []

    def evaluate(self, actions):
        self.plans.append(tuple(actions))
        return super().evaluate(actions)


def random_plans(table, count):
    recorder = Recorder(table)
    SEARCH_METHODS["random"].search(recorder, count, seed=0)
    return recorder.plans


def cost_over_price(subject, plan):
    """What a plan really costs over what its prices say: storage, latency, energy."""
    estimator = PlanEstimator(subject.price())
    estimated = estimator.estimate(estimator.check(plan))[0][0] * subject.price().original
    return np.array(subject.measure(subject.plan(plan)).cost) / estimated


def mean_score(search, budget, table, seeds=(0,)):
    """Mean over demands and seeds of the score that a search finds on the price table."""
    found = [search.search(SurrogateEvaluator(table, demand), budget, seed) for demand in DEMANDS for seed in seeds]
    return np.mean([result.outcome.score for result in found])


# Reached were drops of -0.6 to 0.3 points at 0.05 of the bytes and of -0.3 to 0.6 at 0.03; the margin is a point.
@pytest.mark.parametrize(("share", "most_lost"), [(0.05, 1.3), (0.03, 1.6)])
def test_the_knapsack_keeps_the_accuracy_at_a_small_share_of_the_bytes(subject, share, most_lost):
    evaluator = ExactEvaluator(subject, Demand(2.0, max_storage=share))
    result = SEARCH_METHODS["knapsack"].search(evaluator, 4, seed=0)
    plan = subject.plan(result.actions)
    assert subject.packed_bytes(subject.bank.stitch(plan).model) <= share * subject.price().original[STORAGE]
    assert subject.accuracy - subject.measure(plan).accuracy <= most_lost


# Reached were 3.6 to 4.2, 1.9 to 2.8 and 1.1 to 1.4 points; without the repair 32 to 61, 67 to 89 and 4.4 to 12.8.
@pytest.mark.parametrize(
    ("recipe", "most_lost"),
    [("magnitude_pruning(sparsity=0.7) + uniform_quantization(bits=2)", 6.5), ("binary", 5.0), ("ternary", 3.0)],
)
def test_a_harsh_uniform_plan_loses_little_after_the_repair(subject, recipe, most_lost):
    plan = Plan(subject.network.name, {layer.name: Recipe.parse(recipe) for layer in subject.layers})
    assert subject.accuracy - subject.measure(plan).accuracy <= most_lost


def test_the_knapsack_holds_latency_and_energy_at_once(subject):
    demand = Demand(1.5, max_storage=0.1, max_latency=0.75, max_energy=0.3)
    outcome = SEARCH_METHODS["knapsack"].search(ExactEvaluator(subject, demand), 4, seed=0).outcome
    assert outcome.demand_met


def test_files_and_energy_of_uniform_plans_agree_with_their_prices(subject):
    """Layers keep their shapes, so each price is that of this very layer; of what lies outside, the most is charged."""
    ratios = np.array([cost_over_price(subject, plan) for plan in uniform_plans(subject.price(), formats_only=True)])
    np.testing.assert_allclose(ratios[:, STORAGE], 1.0, atol=0.015)  # 1.2 % was seen
    np.testing.assert_allclose(ratios[:, [LATENCY, ENERGY]], 1.0, atol=0.002)


def test_files_and_energy_of_any_plan_agree_with_their_prices(subject):
    """Layers that lose channels to their neighbours are priced by a line over their shapes: 3.3 % was seen."""
    ratios = np.array([cost_over_price(subject, plan) for plan in random_plans(subject.price(), 12)])
    assert abs(ratios[:, STORAGE] - 1.0).max() < 0.045
    assert abs(ratios[:, STORAGE] - 1.0).mean() < 0.015
    np.testing.assert_allclose(ratios[:, [LATENCY, ENERGY]], 1.0, atol=0.002)


def test_an_agent_of_some_seconds_beats_random_plans_and_an_untrained_one(subject, agent):
    table = subject.price()
    trained = mean_score(AgentSearch(agent, 1), 1, table)
    untrained = RecipeAgent.untrained(len(CONTEXT_FEATURES), len(ROW_FEATURES), seed=0)
    assert trained > mean_score(AgentSearch(untrained, 1), 1, table) + 0.05
    assert trained > mean_score(SEARCH_METHODS["random"], 64, table, seeds=range(3)) + 0.2
    assert trained > mean_score(SEARCH_METHODS["knapsack"], 1, table) - 0.1


def test_a_fine_tuned_file_is_no_larger(subject, data):
    recipe = Recipe.parse("magnitude_pruning(sparsity=0.5) + uniform_quantization(bits=2)")
    plan = Plan(subject.network.name, {layer.name: recipe for layer in subject.layers})
    before = subject.packed_bytes(subject.bank.stitch(plan).model)
    settings = RecoverySettings(epochs=2, learning_rate=1e-2)
    found = recover(subject, plan, AugmentedImages(data.train, data.augmentation), settings, most_bytes=before)
    assert max(found.sizes) <= 1.002 * before, "scales, biases or formats grew; moved symbols cost a few bytes"
    assert subject.packed_bytes(found.model) <= before
