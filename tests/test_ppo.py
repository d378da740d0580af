"""Training: it learns, it is deterministic, and TensorBoard explains all that it shows."""

import dataclasses

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_walk import CONTEXT, ROW, ToyWalk, mean_reward

from plywise.agent.learning.ppo import PPOSettings, train
from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.agent.learning.tensorboard import EXPLANATIONS, LAYOUT, Choices, explained_as, guide
from plywise.compressors.errors import ConfigurationError

SHORT = PPOSettings(total_steps=512, num_envs=16, n_steps=8, minibatch=64, epochs=2, hidden=8)


def run(folder, settings=SHORT, **options):
    return train(ToyWalk(settings.num_envs), settings, folder, progress=False, **options)


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run(folder)


@pytest.fixture(scope="module")
def events(short_run):
    accumulator = EventAccumulator(str(short_run[0] / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    return accumulator.Reload()


def test_trained_agent_is_near_the_optimum_and_an_untrained_one_is_not(tmp_path):
    settings = PPOSettings(
        total_steps=16_384, num_envs=16, n_steps=64, minibatch=256, epochs=4, learning_rate=3e-3, hidden=32
    )
    agent = run(tmp_path, settings)
    reward, best, average = mean_reward(agent)
    assert reward > average + 0.95 * (best - average)
    untrained, _, _ = mean_reward(RecipeAgent.untrained(CONTEXT, ROW, seed=0))
    assert untrained < average + 0.5 * (best - average)
    longer, best, average = mean_reward(agent, rows=24)
    assert longer > average + 0.95 * (best - average), "menus three times as long"


def test_training_twice_gives_the_same_weights(tmp_path, short_run):
    assert run(tmp_path).weights_hash == short_run[1].weights_hash
    other = run(tmp_path / "other", dataclasses.replace(SHORT, seed=1))
    assert other.weights_hash != short_run[1].weights_hash


def test_a_run_leaves_nothing_outside_its_folder(tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(outside))
    run(tmp_path / "run")
    assert list(outside.iterdir()) == []


def test_a_finished_run_is_loaded_and_not_trained_again(short_run):
    folder, agent = short_run
    env = ToyWalk(16, breaks_after=0)
    assert train(env, SHORT, folder, progress=False).weights_hash == agent.weights_hash
    assert agent.trained_steps == 512


def test_without_resume_a_run_starts_anew(tmp_path):
    first = run(tmp_path)
    with pytest.raises(ConfigurationError, match="seed: 0 there, 1 now"):
        run(tmp_path, dataclasses.replace(SHORT, seed=1))
    second = run(tmp_path, dataclasses.replace(SHORT, seed=1), resume=False)
    assert second.weights_hash != first.weights_hash
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [{"minibatch": 60}, {"minibatch": 1}, {"total_steps": 0}, {"learning_rate": float("nan")}, {"gamma": 1.1}],
)
def test_settings_that_cannot_work_are_refused(change):
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        dataclasses.replace(SHORT, **change)


def test_an_environment_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="num_envs=16 but the environment has 4"):
        train(ToyWalk(4), SHORT, tmp_path)
    with pytest.raises(ConfigurationError, match="2 names were given for the features of 'context'"):
        run(tmp_path, context_features=("a", "b"))


def test_every_curve_is_explained_and_every_explanation_has_its_curve(events):
    tags = events.Tags()
    shown = {explained_as(tag) for tag in tags["scalars"] + tags["images"]}
    assert shown == EXPLANATIONS.keys()


def test_curves_have_a_point_after_every_rollout(events):
    steps = list(range(128, 513, 128))
    for tag in ("rollout/return", "plan/score", "train/value_loss", "network/net4/met"):
        assert [event.step for event in events.Scalars(tag)] == steps, tag
    met, broken = events.Scalars("plan/met"), events.Scalars("plan/broken")
    assert [a.value + b.value for a, b in zip(met, broken, strict=True)] == pytest.approx([1.0] * 4)
    assert events.Scalars("plan/latency")[0].value == pytest.approx(0.6)


def test_guide_and_settings_are_shown(events):
    tags = events.Tags()["tensors"]
    assert "guide/text_summary" in tags
    text = events.Tensors("guide/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == guide()
    assert all(f"`{tag}`" in text for tag in EXPLANATIONS)
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_an_unexplained_tag_is_refused():
    with pytest.raises(KeyError):
        explained_as("rollout/mystery")
    with pytest.raises(KeyError):
        explained_as("network/net4/mystery")


def test_choices_count_each_technique_at_each_layer():
    choices = Choices(("a", "b"), 0, {})
    choices.add(["identity", "filter_pruning(ratio=0.5) + uniform_quantization(bits=4)"])
    choices.add(["uniform_quantization(bits=8)", "uniform_quantization(bits=4)"])
    names, shares = choices.shares()
    assert names == ["filter_pruning", "identity", "uniform_quantization"]
    assert shares.tolist() == [[0.0, 0.5, 0.5], [0.5, 0.0, 1.0]]


def test_every_chart_shows_curves_that_there_are() -> None:
    shown = [tag for charts in LAYOUT.values() for _, tags in charts.values() for tag in tags]
    assert len(shown) == len(set(shown))
    assert {tag.replace(".*", "<name>") for tag in shown} <= set(EXPLANATIONS)
