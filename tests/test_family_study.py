"""Agents learn over networks of all kinds, and the study of families compresses each by its own metric."""

import dataclasses
import json
from functools import partial

import pytest
from torch import nn

from plywise.agent.learning.ppo import PPOSettings
from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.compressors.errors import ConfigurationError, ModelError
from plywise.env.execution.executor import NoSetup
from plywise.env.execution.in_process import InProcess
from plywise.env.walk.observation import CONTEXT_FEATURES, ROW_FEATURES
from plywise.experiments import train_agent as train_module
from plywise.experiments.commands import price_tables
from plywise.experiments.commands.compression_settings import SourceSettings
from plywise.experiments.commands.price_tables import Pricing, dataset_for, price_networks
from plywise.experiments.data.preprocessing import NOTHING_GIVEN, make_preprocessing
from plywise.experiments.networks.mlp import mlp
from plywise.experiments.networks.training import TrainingSettings
from plywise.experiments.networks.zoo import TRAINED_HERE, ZOO
from plywise.experiments.studies import family_study
from plywise.experiments.studies.family_study import Compressed, compressed, held_out_agent
from plywise.experiments.train_agent import train_agent
from plywise.experiments.workbench.results_page import Page

PAIR = ("digits-mlp", "cancer-mlp")
"""A classifier of images, and a network that has a task of its own."""

DECLARED = ("raspberry-pi-4",)
"""Nothing is timed for it."""


@pytest.fixture
def small_pair(tmp_path, monkeypatch):
    """Makes the pair tiny, hardly trained, and priced in this process."""
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(price_tables, "_executor", lambda _: InProcess(NoSetup()))
    for name, widths in zip(PAIR, ((64, 8, 10), (30, 8, 2)), strict=True):
        entry = dataclasses.replace(ZOO[name], network=partial(mlp, widths), training=TrainingSettings(epochs=1))
        monkeypatch.setitem(ZOO, name, entry)


@pytest.mark.usefixtures("small_pair")
def test_an_agent_learns_over_a_classifier_and_a_network_with_a_task(tmp_path):
    settings = PPOSettings(total_steps=64, num_envs=4, n_steps=8, minibatch=32)
    agent = train_agent(PAIR, out=tmp_path / "out", settings=settings, devices=DECLARED)
    assert agent.trained_steps == 64
    assert json.loads((tmp_path / "out/run.json").read_text())["networks"] == list(PAIR)
    tables = price_networks(PAIR, devices=DECLARED)
    assert [table.network for table in tables] == list(PAIR)
    assert [table.samples for table in tables] == [360, 113]  # each on its own validation items


OWN = """
import torch
from torch import nn
import plywise

def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

def make_task():
    batches = [torch.randn(64, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    return plywise.Task(calibration=batches[:1], validation=batches[1:])
"""


@pytest.mark.parametrize("networks", [(), ("digits-mlp",)])
@pytest.mark.usefixtures("small_pair")
def test_an_agent_learns_on_a_network_of_the_users(tmp_path, networks):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    own = SourceSettings(f"{file}:make_model", task=f"{file}:make_task")
    settings = PPOSettings(total_steps=64, num_envs=4, n_steps=8, minibatch=32)
    agent = train_agent(networks, out=tmp_path / "out", settings=settings, devices=DECLARED, own=own)
    assert agent.trained_steps == 64
    assert json.loads((tmp_path / "out/run.json").read_text())["own"]["model"] == own.model
    tables = price_networks(networks, devices=DECLARED, own=own)
    assert [table.network for table in tables] == [*networks, own.name]


def test_a_network_of_the_users_is_given_by_name(tmp_path):
    own = SourceSettings(nn.Linear(2, 2), task="mine.py:make_task")
    with pytest.raises(ConfigurationError, match="networks and tasks by name"):
        train_agent((), out=tmp_path, own=own)


def test_by_default_an_agent_learns_over_all_that_are_trained_on_the_spot(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train_module, "price_networks", lambda *given, **_: seen.append(given) or [])
    monkeypatch.setattr(train_module, "BatchedCompressionEnv", lambda *_: None)
    monkeypatch.setattr(train_module, "train", lambda *_, **__: None)
    train_agent(out=tmp_path / "all")
    held_out_agent("cancer-mlp", PPOSettings(seed=1), tmp_path)
    everything, without = (names for names, data in seen)
    assert everything == TRAINED_HERE
    assert {ZOO[name].family for name in everything} >= {"gpt", "recurrent", "bert", "unet", "detector", "waves"}
    assert set(everything) - set(without) == {"digits-mlp", "cancer-mlp", "diabetes-mlp"}
    assert {data for _, data in seen} == {"digits"}


def test_the_dataset_is_for_classifiers_of_images():
    assert dataset_for(["digits-mlp", "stdlib-gpt"], None) == "digits"
    assert dataset_for(["digits-mlp", "stdlib-gpt"], "mnist:there") == "mnist:there"
    assert dataset_for(["stdlib-gpt"], None) is None
    for given in (("digits", NOTHING_GIVEN), (None, make_preprocessing("0.5", "0.2"))):
        with pytest.raises(ConfigurationError, match=r"stdlib-gpt have data of their own.*leave out --data"):
            dataset_for(["stdlib-gpt"], *given)
    with pytest.raises(ModelError, match="takes no dataset: leave out --data"):
        Pricing("cancer-mlp", "digits").price()


def test_only_classifiers_are_priced_on_the_dataset(monkeypatch):
    monkeypatch.setattr(price_tables, "_executor", lambda _: InProcess(NoSetup()))
    monkeypatch.setattr(Pricing, "run", lambda task, _: (task, False))
    assert price_networks(PAIR) == [Pricing("digits-mlp", "digits"), Pricing("cancer-mlp", None)]


REPORT = {
    "original": {"accuracy": 0.5, "storage_bytes": 1000, "latency_ms": 2.0},
    "compressed": {"accuracy": 0.49, "storage_bytes": 120, "latency_ms": 1.0},
    "validation": {"original_accuracy": 0.6, "compressed_accuracy": 0.595},
    "metric": {"point": 0.005},
    "checks": [{"passed": True}, {"passed": True}],
    "demand_met": False,
}


def test_a_compression_is_paid_for_once_and_judged_in_its_own_metric(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(family_study, "compress_model", lambda settings, out: asked.append((settings, out)) or REPORT)
    first, again = (compressed("diabetes-mlp", None, 2, tmp_path) for _ in range(2))
    assert (
        first
        == again
        == Compressed(0.5, 0.49, pytest.approx(2.0), pytest.approx(1.0), 0.12, 0.5, equal=True, met=False)
    )
    ((settings, _),) = asked
    assert (settings.source.model, settings.source.data) == ("zoo:diabetes-mlp", None)
    assert (settings.search.method, settings.search.seed, settings.demand) == ("knapsack", 2, family_study.DEMAND)
    agent = RecipeAgent.untrained(len(CONTEXT_FEATURES), len(ROW_FEATURES), seed=5)
    agent.save(tmp_path / "agent")
    assert compressed("diabetes-mlp", tmp_path / "agent", 2, tmp_path) == first
    assert asked[1][0].search.agent == tmp_path / "agent"


def test_a_demand_out_of_reach_is_a_row_with_its_reason(tmp_path, monkeypatch):
    def refuse(*_):
        raise ConfigurationError("no plan has 0.15 of the bytes")

    monkeypatch.setattr(family_study, "compress_model", refuse)
    rows = {("stdlib-gpt", "knapsack", 0): compressed("stdlib-gpt", None, 0, tmp_path)}
    rows |= {
        ("cancer-mlp", "agent", seed): Compressed(98.0, 97.0 + seed, 1.0 - seed, 0.5, 0.1, 0.9, True, seed == 1)
        for seed in (0, 1)
    }
    page = Page("family_study", "command", 0.0)
    family_study._tables(page, rows)
    table, counts, reason = page.markdown[-3:]
    assert "| stdlib-gpt | knapsack | bits per byte | refused |" in table
    assert "| 98 | 97.5 ± 0.71 | 0.50 ± 0.71 | 0.50 ± 0 | 0.100 ± 0 | 0.90 ± 0 | 2 of 2 | 1 of 2 |" in table
    assert "Demands met: 1 of 3. Files equal: 2 of 3." in counts
    assert reason == "stdlib-gpt, knapsack: refused, for no plan has 0.15 of the bytes"
