"""Files of agents and runs: exact resume after a kill, and clear refusal of what does not fit."""

import json
import os
import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_walk import CONTEXT, ROW, ToyWalk

from plywise.agent.learning import checkpoint
from plywise.agent.learning.ppo import PPOSettings, train
from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.compressors.errors import ConfigurationError, FileFormatError

SETTINGS = PPOSettings(total_steps=1024, num_envs=16, n_steps=8, minibatch=64, epochs=2, hidden=8)


@pytest.fixture(autouse=True)
def checkpoint_always(monkeypatch):
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)


def run(folder, env=None, settings=SETTINGS, **options):
    return train(env or ToyWalk(), settings, folder, progress=False, **options)


def killed(folder, after):
    with pytest.raises(KeyboardInterrupt):
        run(folder, ToyWalk(breaks_after=after))
    assert not (folder / "agent.json").exists()


def disturb_generators():
    random.seed(77)
    np.random.seed(77)
    torch.manual_seed(77)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, run(folder)


@pytest.mark.parametrize("after", [[3], [8], [37], [63], [20, 20, 5]])
def test_a_killed_run_ends_with_the_same_weights(tmp_path, straight, after):
    for steps in after:
        killed(tmp_path, steps)
        disturb_generators()
    agent = run(tmp_path, ToyWalk(seed=1234))
    assert agent.weights_hash == straight[1].weights_hash
    assert not (tmp_path / "checkpoint.safetensors").exists()


def scalars(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag != "rollout/steps_per_second"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def test_curves_of_a_resumed_run_have_no_gap_and_nothing_twice(tmp_path, straight, monkeypatch):
    killed(tmp_path, 20)
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 1e9)
    killed(tmp_path, 30)  # gets further than the checkpoint: these points are to be dropped
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    run(tmp_path)
    assert scalars(tmp_path) == scalars(straight[0])


def test_a_kill_while_writing_leaves_the_last_checkpoint(tmp_path, straight, monkeypatch):
    killed(tmp_path, 20)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.safetensors", "tensorboard"}
    assert run(tmp_path).weights_hash == straight[1].weights_hash


def test_a_run_with_other_settings_is_not_resumed(tmp_path):
    killed(tmp_path, 20)
    other = PPOSettings(total_steps=2048, num_envs=16, n_steps=8, minibatch=64, epochs=2, hidden=8, seed=3)
    with pytest.raises(ConfigurationError, match=r"seed: 0 there, 3 now; total_steps: 1024 there, 2048 now") as error:
        run(tmp_path, settings=other)
    assert "another folder" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\xff" * 64])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(FileFormatError, match="is damaged"):
        run(tmp_path)


def test_a_checkpoint_of_other_environments_is_refused(tmp_path):
    killed(tmp_path, 20)

    class OtherWalk(ToyWalk):
        STATE = (*ToyWalk.STATE, "budget")

    with pytest.raises(FileFormatError, match="does not fit this run"):
        run(tmp_path, OtherWalk())


@pytest.fixture
def saved(tmp_path):
    agent = RecipeAgent.untrained(CONTEXT, ROW, seed=0)
    names = tuple("abcde"), tuple("uvwxyz")
    RecipeAgent(agent.scorer, *names, {"seed": 5}, 100).save(tmp_path)
    return tmp_path, agent


def test_a_saved_agent_decides_as_before(saved):
    folder, agent = saved
    loaded = RecipeAgent.load(folder, tuple("abcde"), tuple("uvwxyz"))
    env = ToyWalk()
    observation = env.reset()
    asked = observation["context"], observation["recipes"], env.action_masks()
    assert loaded.act(*asked).tolist() == agent.act(*asked).tolist()
    assert loaded.weights_hash == agent.weights_hash
    assert (loaded.training, loaded.trained_steps) == ({"seed": 5}, 100)
    assert {path.name for path in folder.iterdir()} == {"policy.safetensors", "agent.json"}


def test_an_agent_for_other_features_is_refused(saved):
    with pytest.raises(FileFormatError, match=r"other recipe_features: it needs \['z'\], the environment adds \['n'\]"):
        RecipeAgent.load(saved[0], tuple("abcde"), tuple("uvwxyn"))
    with pytest.raises(FileFormatError, match="the order counts"):
        RecipeAgent.load(saved[0], tuple("abced"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "zip"}, "does not describe an agent"),
        ({"version": 2}, "has version 2, this Plywise reads version 1"),
        ({"hidden": 10**9}, "'hidden' is 1000000000, which must be 1 to 4096"),
        ({"hidden": True}, "'hidden' is True"),
        ({"hidden": 32}, "agent.json describes"),
        ({"training": None}, "'training' is None, which must be a dict"),
        ({"weights_sha256": "0" * 64}, "do not belong together"),
    ],
)
def test_an_altered_description_is_refused(saved, change, message):
    path = saved[0] / "agent.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FileFormatError, match=message):
        RecipeAgent.load(saved[0])


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b"[]"])
def test_a_description_that_is_no_json_object_is_refused(saved, content):
    (saved[0] / "agent.json").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"agent\.json"):
        RecipeAgent.load(saved[0])


def test_missing_truncated_and_hostile_weights_are_refused(saved):
    folder, agent = saved
    path = folder / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FileFormatError, match="is damaged"):
        RecipeAgent.load(folder)
    save_file({"code": torch.zeros(1)}, path)
    with pytest.raises(FileFormatError, match="restore both files"):
        RecipeAgent.load(folder)
    with torch.no_grad():
        agent.scorer.score.weight[0, 0] = float("nan")
    agent.save(folder)
    with pytest.raises(FileFormatError, match="not finite"):
        RecipeAgent.load(folder)
    path.unlink()
    with pytest.raises(FileFormatError, match="is missing"):
        RecipeAgent.load(folder)
    with pytest.raises(FileFormatError, match="give the folder of a trained agent"):
        RecipeAgent.load(folder / "nowhere")
