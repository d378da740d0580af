import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import plywise.env  # noqa: F401  registers the environment
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import SurrogateEvaluator
from plywise.env.walk.compression_env import CompressionEnv
from plywise.env.walk.synthetic import synthetic_table


@pytest.fixture
def env():
    return CompressionEnv()


def test_passes_the_checkers():
    check_env(CompressionEnv(), skip_render_check=True)
    check_env_sb3(CompressionEnv(), warn=False)  # it would warn that a menu is not a flat vector


def test_is_registered_and_its_specification_is_json():
    made = gym.make("plywise/Compression-v0", noise=1.0)
    assert isinstance(made.unwrapped, CompressionEnv)
    assert json.loads(made.spec.to_json())["kwargs"] == {"noise": 1.0}


def walk(env, seed):
    rng = np.random.default_rng(seed)
    seen, _ = env.reset(seed=seed)
    record, total, done = [seen], 0.0, False
    start = env.walks.outlook.potential[0]
    while not done:
        seen, reward, done, truncated, info = env.step(rng.choice(np.flatnonzero(env.action_masks())))
        assert not truncated
        record.append(seen)
        total += reward
    return record, total, start, info["plan"]


@pytest.mark.parametrize("options", [{}, {"noise": 1.0, "jitter": 1.0}])
def test_return_is_score_less_the_first_potential(options):
    record, total, start, plan = walk(CompressionEnv(**options), 1)
    assert total == pytest.approx(plan["score"] - start)
    assert len(record) == 9
    assert not record[-1]["recipes"].any()


def test_shaping_leaves_differences_between_plans_alone():
    env = CompressionEnv(demand=Demand(None, max_storage=0.5))
    runs = [walk(env, seed) for seed in range(4)]
    for _, total, _, plan in runs[1:]:
        assert total - runs[0][1] == pytest.approx(plan["score"] - runs[0][3]["score"])


def test_twins_from_one_seed_walk_alike():
    first, second = (walk(CompressionEnv(noise=1.0, jitter=1.0), 7) for _ in range(2))
    for a, b in zip(first[0], second[0], strict=True):
        assert all((a[key] == b[key]).all() for key in a)
    assert first[3] == second[3]
    assert walk(CompressionEnv(), 8)[3] != first[3]


def test_an_illegal_action_is_replaced_by_the_nearest_legal_one(env):
    env.reset(seed=0)
    env.walks.outlook.masks[0] = False
    env.walks.outlook.masks[0, [2, 9]] = True
    info = env.step(np.int64(7))[4]
    assert info == {"replaced_action": 9}
    assert env.walks.state.actions[0, 0] == 9


def test_observations_do_not_share_memory(env):
    first, _ = env.reset(seed=0)
    kept = {key: value.copy() for key, value in first.items()}
    env.step(np.int64(0))
    assert all((first[key] == kept[key]).all() for key in kept)
    env.action_masks()[:] = False
    assert env.action_masks().any()


def test_the_plan_is_what_the_evaluator_scores():
    table, demand = synthetic_table(np.random.default_rng(3), 10), Demand(2.0, max_storage=0.3)
    plan = walk(CompressionEnv(table, demand), 0)[3]
    outcome = SurrogateEvaluator(table, demand).evaluate(plan["actions"])
    assert plan["score"] == pytest.approx(outcome.score, rel=1e-4)
    assert (plan["storage"], plan["latency"], plan["energy"]) == pytest.approx(outcome.ratios, rel=1e-5)
    assert plan["demand_met"] == outcome.demand_met
    assert plan["recipes"][0] == table.recipes[0][plan["actions"][0]]
    assert json.loads(json.dumps(plan))["layers"] == list(table.layers)
