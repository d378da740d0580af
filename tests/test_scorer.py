"""Scores that reuse what earlier plans have computed: the same numbers, bit for bit, below a ceiling of memory."""

import platform
import random
import subprocess
import sys

import pytest
import torch
from tiny_banks import banked
from tiny_networks import NETWORKS, Plain, Residual, build, images, labels
from torch import nn
from torch.nn import functional as F

from plywise.compressors.errors import ConfigurationError
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank.activation_memory import ActivationMemory, shared_memory
from plywise.env.bank.bank import Bank
from plywise.env.bank.repair import Repair
from plywise.env.bank.scorer import Scorer
from plywise.env.bank.unit import find_units
from plywise.env.calibration.calibration import calibrate
from plywise.env.network.network import Network
from plywise.env.storage import memory as memory_module
from plywise.env.storage.memory import GIB, ceiling_of_layers, ceiling_of_outputs, limit_memory, share
from plywise.env.task.samples import labelled

RECIPES = (
    "identity",
    "uniform_quantization(bits=3)",
    "uniform_quantization(bits=4) + activation_quantization",
    "filter_pruning(ratio=0.5)",
    "low_rank(ratio=0.4)",
)
PLENTY = 1 << 28


class Block(nn.Module):
    """Changes its input in place where `eager`, and always the output of its first layer."""

    def __init__(self, eager):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.eager = eager

    def forward(self, images):
        inputs = F.relu_(images) if self.eager else F.relu(images)
        return self.second(self.first(inputs).relu_())


class InPlace(nn.Module):
    """Blocks alongside identities, most of whose sums and ReLUs write over what the layers put out."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList(Block(eager) for eager in (False, True, False, True, False))
        self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 5))

    def forward(self, images):
        out = self.stem(images)
        for block in self.blocks:
            after = block(out)
            out = after.add_(out)
        return self.head(out.mean((2, 3)))


def walk(network, steps, seed=0):
    """Yields plans each of which differs from the one before in one layer."""
    chooser = random.Random(seed)
    recipes = dict.fromkeys((layer.name for layer in network.layers), Recipe.parse(RECIPES[1]))
    recipes = {
        name: recipe if network.unsupported(name, recipe) is None else Recipe() for name, recipe in recipes.items()
    }
    for _ in range(steps):
        yield Plan(network.name, recipes)
        name = chooser.choice(list(recipes))
        fits = [recipe for recipe in map(Recipe.parse, RECIPES) if network.unsupported(name, recipe) is None]
        recipes = {**recipes, name: chooser.choice(fits)}


SAMPLES = labelled(images(100, 5), labels(100, 6))


class CountingMemory(ActivationMemory):
    """Counts how often something asked for was there."""

    hits = 0

    def get(self, key):
        found = super().get(key)
        self.hits += found is not None
        return found


@pytest.mark.parametrize("ceiling", [PLENTY, 200_000])
@pytest.mark.parametrize("kind", [*NETWORKS, InPlace])
def test_what_is_reused_is_what_would_have_been_computed(kind, ceiling):
    bank, memory = banked(kind), CountingMemory(ceiling)
    scorer = Scorer(bank, memory)
    for plan in walk(bank.network, 6):
        stitched, logits = scorer.run(plan, SAMPLES.logits, Repair(inputs=32))
        alone = bank.stitch(plan, Repair(inputs=32))
        assert torch.equal(logits, SAMPLES.logits(alone.model))
        assert stitched.replaced.keys() == alone.replaced.keys()
        for name, value in alone.model.state_dict().items():
            assert torch.equal(stitched.model.state_dict()[name], value)
        assert memory.used <= ceiling
    assert memory.hits > 0


def test_layers_before_the_change_do_not_run_again():
    bank = banked(Residual)
    scorer, ran = Scorer(bank, ActivationMemory(PLENTY)), []
    first, second = ({"b2": "uniform_quantization(bits=4)"}, {"b2": "low_rank(ratio=0.4)"})
    plans = [
        Plan("Residual", {layer.name: Recipe.parse(texts.get(layer.name, "identity")) for layer in bank.network.layers})
        for texts in (first, second)
    ]
    scorer.run(plans[0], SAMPLES.logits)
    for layer in bank.network.layers:
        bank.network.modules[layer.name].register_forward_hook(lambda *_, name=layer.name: ran.append(name))
    scorer.run(plans[1], SAMPLES.logits)
    assert not ran  # "b2" and "head", which is repaired, are other modules now


@pytest.mark.parametrize("kind", [Plain, InPlace])
def test_nothing_is_remembered_behind_the_layers_that_later_plans_begin_with(kind):
    bank = banked(kind)
    plan, units = next(walk(bank.network, 1)), find_units(bank.network)
    keep = units[1].layers
    few, all_of_it = CountingMemory(PLENTY), ActivationMemory(PLENTY)
    scorers = [Scorer(bank, memory) for memory in (few, all_of_it)]
    for turn in (1, 2):
        found = scorers[0].run(plan, SAMPLES.logits, keep=keep)[1], scorers[1].run(plan, SAMPLES.logits)[1]
        assert torch.equal(*found)
        assert 0 < few.used < all_of_it.used
        assert (few.hits > 0) == (turn == 2)


def test_networks_that_share_a_memory_do_not_get_each_others_outputs():
    memory = ActivationMemory(PLENTY)
    for seed in (0, 1):
        network = Network.of(build(Plain, seed), images(4))
        bank = Bank(network, calibrate(network, labelled(images(), labels())))
        for plan in walk(network, 2):
            found = Scorer(bank, memory).run(plan, SAMPLES.logits)[1]
            assert torch.equal(found, SAMPLES.logits(bank.stitch(plan).model))


def test_units_are_the_largest_modules_of_few_layers():
    network = Network.of(build(InPlace), images(4))
    found = {unit.name: (unit.layers, unit.changed) for unit in find_units(network)}
    assert found["blocks.0"] == (3, True)  # a sum is written over its output
    assert "blocks.1" not in found  # it writes over its input, which the network reads again
    assert found["blocks.1.second"] == (5, True)
    assert found["head"] == (13, False)


def test_a_memory_keeps_the_beginning_of_a_pass_that_is_too_large_for_it():
    memory = ActivationMemory(100)
    memory.begin()
    for place in range(5):
        memory.put(place, torch.zeros(10), {})
    assert memory.used == 80
    assert [memory.get(place) is not None for place in range(5)] == [True, True, False, False, False]
    memory.begin()
    memory.get(1)
    memory.put("new", torch.zeros(10), {})
    assert [memory.get(place) is not None for place in (0, 1, "new")] == [False, True, True]


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setattr(memory_module, "_asked", [])


def test_layers_and_outputs_share_what_is_asked_for(asked):
    usual = ceiling_of_layers() + ceiling_of_outputs()
    limit_memory(0.5)
    assert ceiling_of_layers() + ceiling_of_outputs() == GIB // 2 < usual
    assert min(ceiling_of_layers(), ceiling_of_outputs()) > 0
    assert shared_memory().ceiling == ceiling_of_outputs()
    limit_memory(0.25)
    assert shared_memory().ceiling == ceiling_of_outputs() < GIB // 4
    limit_memory(None)
    assert ceiling_of_layers() + ceiling_of_outputs() == usual


def test_a_containers_limit_counts(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_module, "CONTAINER", tmp_path / "memory.max")
    usual = share(1)
    assert share(4) == usual / 4
    for said, expected in (("max\n", usual), (f"{GIB // 4}\n", 0.25 * memory_module.SHARE)):
        (tmp_path / "memory.max").write_text(said)
        assert share(1) == expected


@pytest.mark.parametrize("gibibytes", [0.0, -1.0, 1e9, float("nan")])
def test_memory_that_the_machine_has_not_is_refused(asked, gibibytes):
    with pytest.raises(ConfigurationError, match=r"memory=.* at most what the machine has"):
        limit_memory(gibibytes)


PASSES = """
import ctypes, resource, sys, torch
from plywise.env.storage.memory import M_MMAP_THRESHOLD, keep_freed_memory
ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 17)  # where glibc may or may not find itself
if sys.argv[1] == "kept":
    keep_freed_memory()
for turn in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        [torch.ones(1 << 20) for _ in range(8)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc only")
def test_what_a_pass_frees_is_there_for_the_next_one():
    faults = {
        way: int(subprocess.run([sys.executable, "-c", PASSES, way], capture_output=True, check=True, text=True).stdout)
        for way in ("given back", "kept")
    }
    assert faults["given back"] > 20 * 8 * 1024 / 2  # pages of 4 KiB
    assert faults["kept"] < 1024
