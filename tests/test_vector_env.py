import json

import numpy as np
import pytest
from sb3_contrib.common.maskable.utils import get_action_masks

from plywise.env.score.demand import Demand
from plywise.env.walk.compression_env import CompressionEnv
from plywise.env.walk.demand_sampler import DemandSampler
from plywise.env.walk.observation import observation_space
from plywise.env.walk.synthetic import synthetic_table
from plywise.env.walk.vector_env import BatchedCompressionEnv


@pytest.fixture(scope="module")
def tables():
    return [
        synthetic_table(np.random.default_rng(seed), layers, name=f"n{layers}") for seed, layers in enumerate((3, 7))
    ]


def legal(env, rng):
    masks = env.action_masks()
    return (masks * rng.random(masks.shape)).argmax(1)


def run(env, steps, seed=0):
    rng = np.random.default_rng(seed)
    record = []
    for _ in range(steps):
        seen, reward, done, infos = env.step(legal(env, rng))
        plans = [info["plan"] for info in infos if info]
        record.append((seen["context"].tobytes(), seen["recipes"].tobytes(), reward.tobytes(), done.tobytes(), plans))
    return record


def test_rows_end_and_start_again_on_their_own(tables):
    env = BatchedCompressionEnv(tables, DemandSampler(), 16, seed=0)
    env.reset()
    rng = np.random.default_rng(0)
    lengths, totals, networks = np.zeros(16, int), np.zeros(16), set()
    for _ in range(25):
        seen, reward, done, infos = env.step(legal(env, rng))
        assert env.observation_space.contains({key: value[0] for key, value in seen.items()})
        assert reward.dtype == np.float32
        lengths, totals = lengths + 1, totals + reward
        for row, info in enumerate(infos):
            assert bool(info) == done[row]
            if not info:
                continue
            networks.add(info["plan"]["network"])
            assert info["TimeLimit.truncated"] is False
            assert info["episode"]["l"] == lengths[row] == len(info["plan"]["actions"])
            assert info["episode"]["r"] == pytest.approx(totals[row], abs=1e-2)
            assert observation_space(32).contains(info["terminal_observation"])
            lengths[row], totals[row] = 0, 0.0
    assert networks == {"n3", "n7"}


def test_agrees_with_the_single_environment(tables):
    demand = Demand(2.0, max_storage=0.3)
    single = CompressionEnv(tables[1], demand)
    batch = BatchedCompressionEnv(tables[1:], demand, 2, seed=0, noise=0.0, jitter=0.0)
    seen, _ = single.reset()
    many = batch.reset()
    for _ in range(7):
        assert (batch.action_masks()[1] == single.action_masks()).all()
        for key in seen:
            assert many[key][1] == pytest.approx(seen[key], abs=1e-5)
        action = int(np.flatnonzero(single.action_masks())[-1])
        seen, reward, done, _, info = single.step(np.int64(action))
        many, rewards, dones, infos = batch.step(np.array([action, action]))
        assert rewards[1] == pytest.approx(reward, abs=1e-4)
        assert dones[1] == done
    assert infos[1]["plan"] == info["plan"]


def test_equal_seeds_give_equal_runs(tables):
    def fresh(seed):
        env = BatchedCompressionEnv(tables, DemandSampler(), 8, seed=seed)
        env.reset()
        return run(env, 20)

    assert fresh(1) == fresh(1)
    assert fresh(1) != fresh(2)


def test_continues_exactly_from_a_saved_state(tables):
    env = BatchedCompressionEnv(tables, DemandSampler(), 8, seed=0)
    env.reset()
    run(env, 5)
    state = env.get_state()
    arrays = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
    rest = json.loads(json.dumps({key: value for key, value in state.items() if key not in arrays}))
    expected = run(env, 20, seed=1)
    other = BatchedCompressionEnv(tables, DemandSampler(), 8, seed=99)
    other.reset()
    other.set_state(arrays | rest)
    assert run(other, 20, seed=1) == expected


def test_noise_changes_scores_but_not_what_is_seen(tables):
    runs = []
    for noise in (0.0, 1.0):
        env = BatchedCompressionEnv(tables[:1], Demand(None), 4, seed=0, noise=noise, jitter=0.0)
        first = env.reset()
        runs.append((first["recipes"].tobytes(), run(env, 3)))
    assert runs[0][0] == runs[1][0]
    assert runs[0][1][1][:2] == runs[1][1][1][:2]
    assert runs[0][1][2][2] != runs[1][1][2][2]  # rewards of the last step


def test_jitter_makes_one_table_act_like_many(tables):
    plain = BatchedCompressionEnv(tables[:1], Demand(None), 4, seed=0, noise=0.0, jitter=0.0).reset()["recipes"]
    varied = BatchedCompressionEnv(tables[:1], Demand(None), 4, seed=0, noise=0.0, jitter=1.0).reset()["recipes"]
    assert (plain[0] == plain[1]).all()
    assert (varied[0] != varied[1]).any()


def test_a_reset_begins_all_returns_anew(tables):
    demand, totals = Demand(2.0, max_storage=0.3), []
    env = BatchedCompressionEnv(tables[:1], demand, 2, seed=0, noise=0.0, jitter=0.0)
    for steps in (0, 2):
        env.reset()
        run(env, steps)  # of three
        env.reset()
        rng = np.random.default_rng(0)
        infos = [env.step(legal(env, rng))[3] for _ in range(3)][-1]
        totals.append([info["episode"]["r"] for info in infos])
    assert totals[0] == totals[1]


def test_methods_return_a_list_with_one_entry_for_each_row(tables):
    env = BatchedCompressionEnv(tables, DemandSampler(), 4, seed=0)
    env.reset()
    found = env.env_method("action_masks")
    assert [type(mask) for mask in found] == [np.ndarray] * 4
    assert (np.stack(found) == env.action_masks()).all()
    assert (get_action_masks(env) == env.action_masks()).all()
    picked = env.env_method("action_masks", indices=[3, 1])
    assert len(picked) == 2
    assert (np.stack(picked) == env.action_masks()[[3, 1]]).all()
    assert env.env_method("close", indices=2) == [None]


def test_a_seed_given_before_a_reset_counts(tables):
    env = BatchedCompressionEnv(tables, DemandSampler(), 4, seed=0)
    env.seed(5)
    first = env.reset()["context"]
    other = BatchedCompressionEnv(tables, DemandSampler(), 4, seed=5).reset()["context"]
    assert (first == other).all()


def test_attributes_are_answered_for_each_row(tables):
    env = BatchedCompressionEnv(tables, DemandSampler(), 4, seed=0)
    assert env.get_attr("render_mode") == [None] * 4
    assert env.env_is_wrapped(object, indices=[0, 2]) == [False, False]
    assert env.has_attr("action_masks")
    env.reset()
    env.walks.outlook.masks[:, 1:] = False
    with pytest.raises(AssertionError, match="mask"):
        env.step(np.ones(4, int))
