"""Calibration, the bank of compressed layers, and plans stitched from it."""

import errno
import os
from contextlib import nullcontext

import pytest
import torch
from tiny_banks import banked, outputs_of, plan_of
from tiny_networks import NETWORKS, Concatenated, Depthwise, Identity, Plain, Residual, Sequence, build, images, labels
from torch import nn

from plywise.compressors.errors import ConfigurationError, ModelError, UnsupportedLayerError
from plywise.compressors.modules.layers import groups_of, weight_matrices
from plywise.compressors.modules.static_quantized import StaticQuantized
from plywise.compressors.packing.packed_file import load_packed, save_packed
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe, Stage
from plywise.env.bank.bank import Bank
from plywise.env.bank.bank_folder import BankFolder
from plywise.env.bank.repair import Repair
from plywise.env.calibration.calibration import calibrate
from plywise.env.network.menu import legal_recipes
from plywise.env.network.network import Network
from plywise.env.network.scheme import Scheme
from plywise.env.storage.cache import CacheDamageWarning
from plywise.env.task.samples import labelled

# Calibration


@pytest.mark.parametrize("kind", NETWORKS)
def test_statistics_tell_the_moments_of_the_outputs(kind):
    network = Network.of(build(kind), images(4))
    calibration = calibrate(network, labelled(images(), labels()))
    for layer in network.layers:
        module, found = network.modules[layer.name], calibration.statistics[layer.name]
        matrix = weight_matrices(module)
        assert found.covariance.shape == (groups_of(module), matrix.shape[2], matrix.shape[2])
        mean = torch.einsum("gof,gf->go", matrix, found.mean).flatten()
        mean = mean if module.bias is None else mean + module.bias.detach()
        variance = torch.einsum("gof,gfh,goh->go", matrix, found.covariance, matrix).flatten()
        seen = calibration.outputs[layer.name]
        assert torch.allclose(mean, seen.mean, atol=1e-4)
        assert torch.allclose(variance.clamp(min=0).sqrt(), seen.deviation, atol=1e-4, rtol=1e-3)
        assert bool((found.inputs.diff() >= 0).all())
        assert bool((found.outputs.diff() >= 0).all())


def test_calibration_is_the_same_for_the_same_seed():
    network = Network.of(build(Plain), images(4))
    first, second, other = (calibrate(network, labelled(images(), labels()), seed) for seed in (0, 0, 1))
    for name, found in first.statistics.items():
        assert torch.equal(found.covariance, second.statistics[name].covariance)
        assert torch.equal(found.inputs, second.statistics[name].inputs)
        assert torch.equal(found.importance["taylor"], second.statistics[name].importance["taylor"])
    assert not torch.equal(first.statistics["conv1"].inputs, other.statistics["conv1"].inputs)


EMBEDDED = nn.Sequential(nn.Embedding(40, 8), nn.Flatten(), nn.Linear(48, 5)).eval()
WORDS = torch.randint(40, (32, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("model", "inputs"), [(build(Depthwise), images(32)), (EMBEDDED, WORDS)])
def test_calibration_in_batches_sees_what_one_batch_sees(model, inputs, monkeypatch):
    network = Network.of(model, inputs[:4])
    whole = calibrate(network, labelled(inputs, labels(32)))
    monkeypatch.setattr("plywise.env.task.samples.BATCH", 5)
    parts = calibrate(network, labelled(inputs, labels(32)))
    for name, found in whole.statistics.items():
        other = parts.statistics[name]
        torch.testing.assert_close(other.covariance, found.covariance, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.mean, found.mean, rtol=1e-4, atol=1e-5)
        assert (other.inputs[0], other.inputs[-1]) == (found.inputs[0], found.inputs[-1])
        assert other.frequency is found.frequency or torch.equal(other.frequency, found.frequency)
    for name, seen in whole.outputs.items():
        torch.testing.assert_close(parts.outputs[name].mean, seen.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(parts.outputs[name].deviation, seen.deviation, rtol=1e-4, atol=1e-5)


def test_layers_of_a_group_rank_its_channels_alike():
    bank = banked(Identity)
    for criterion in ("l2", "taylor"):
        found = [bank.calibration.statistics[name].importance[criterion] for name in ("stem", "outer", "inner")]
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])


def test_values_that_are_not_finite_are_refused():
    model = build(Plain)
    with torch.no_grad():
        model.conv2.weight[0] = float("inf")
    network = Network.of(model, images(4))
    with pytest.raises(ModelError, match=r"conv2 gives values that are not finite"):
        calibrate(network, labelled(images(), labels()))


# Stitching


@pytest.mark.parametrize("kind", NETWORKS)
def test_identity_changes_nothing(kind):
    bank = banked(kind)
    stitched = bank.stitch(plan_of(bank.network))
    assert stitched.replaced == {}
    assert torch.equal(outputs_of(stitched.model, images()), outputs_of(bank.network.model, images()))


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_legal_recipe_runs_alone_and_leaves_the_original_alone(kind):
    bank = banked(kind)
    network = bank.network
    before = outputs_of(network.model, images(8))
    for layer in network.layers:
        for recipe in legal_recipes(layer, network.modules[layer.name])[::6]:
            plan = plan_of(network, **{layer.name: str(recipe)})
            outputs = outputs_of(bank.stitch(plan, Repair(inputs=16)).model, images(8))
            assert outputs.shape == before.shape
            assert bool(torch.isfinite(outputs).all()), recipe
    assert torch.equal(outputs_of(network.model, images(8)), before)


FULL = "uniform_quantization(bits=4)"
PLANS = [
    (Plain, {"conv1": "filter_pruning(ratio=0.25)", "conv2": f"low_rank(ratio=0.4) + {FULL}"}),
    (
        Plain,
        {"conv2": f"filter_pruning + {FULL} + activation_quantization"},
    ),
    (Identity, {"inner": f"low_rank(ratio=0.4, sides=both) + {FULL}", "outer": "low_rank(ratio=0.25)"}),
    (Identity, {"stem": f"filter_pruning + {FULL}", "outer": "low_rank(ratio=0.4)", "inner": "filter_pruning"}),
    (Identity, {"stem": "filter_pruning", "inner": "fire", "outer": f"micro_mlp(ratio=0.6) + {FULL}"}),
    (Plain, {"conv2": f"fire(ratio=0.6) + magnitude_pruning + {FULL} + activation_quantization"}),
    (Concatenated, {"left": "filter_pruning", "right": "filter_pruning(ratio=0.25)", "merge": "filter_pruning"}),
    (Depthwise, {"expand": "filter_pruning", "filter": f"magnitude_pruning + {FULL}"}),
    (Sequence, {"conv1": "filter_pruning", "conv2": f"low_rank(ratio=0.6) + {FULL} + activation_quantization"}),
]


@pytest.mark.parametrize(("kind", "recipes"), PLANS)
def test_stitching_twice_gives_the_same_bits_and_a_file_keeps_them(kind, recipes, tmp_path):
    bank, other = banked(kind), banked(kind)
    plan = plan_of(bank.network, **recipes)
    bank.stitch(plan_of(bank.network, FULL))  # what was in the bank before must not matter
    models = [bank.stitch(plan).model, bank.stitch(plan).model, other.stitch(plan).model]
    outputs = [outputs_of(model, images(8)) for model in models]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    save_packed(models[0], bank.network.original, tmp_path / "weights", {})
    loaded = load_packed(tmp_path / "weights", bank.network.original)
    assert torch.equal(outputs_of(loaded, images(8)), outputs[0])


def test_entries_are_compressed_once_and_never_changed_by_stitching():
    bank = banked(Plain)
    recipe = Recipe.parse(FULL)
    entry = bank.entry("conv2", recipe)
    before = entry.weight.clone()
    stitched = bank.stitch(plan_of(bank.network, conv2=FULL))
    assert bank.entry("conv2", recipe) is entry
    assert torch.equal(entry.weight, before)
    assert stitched.replaced["conv2"] is not entry


def test_a_low_rank_layer_keeps_its_rank_when_its_group_is_cut():
    bank = banked(Identity)
    stems = ("identity", "filter_pruning(ratio=0.5)")
    plans = [plan_of(bank.network, outer="low_rank(ratio=0.4)", stem=stem) for stem in stems]
    ranks = [bank.stitch(plan).replaced["outer"][0].out_channels for plan in plans]
    assert ranks[0] == ranks[1]


def test_prunings_elsewhere_do_not_make_new_entries():
    bank = banked(Plain)
    state = bank.state(plan_of(bank.network, conv2="filter_pruning"))
    recipe = Recipe.parse(FULL)
    assert bank.entry("conv1", recipe, state) is bank.entry("conv1", recipe)
    assert bank.entry("head", recipe, state) is not bank.entry("head", recipe)
    assert bank.entry("head", recipe, state).in_features == 12


def test_weights_are_the_same_with_and_without_integer_activations():
    bank = banked(Plain)
    plain = bank.entry("conv2", Recipe.parse(FULL))
    integer = bank.entry("conv2", Recipe.parse(f"{FULL} + activation_quantization"))
    assert isinstance(integer, StaticQuantized)
    assert torch.equal(integer.layer.weight, plain.weight)


INTEGERS = "uniform_quantization(bits=4) + activation_quantization"


def rounding(model):
    return {name for name, part in model.named_modules() if getattr(part, "rounds_inputs", False)}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("first", ["", "low_rank(ratio=0.4) + "])
def test_roundings_left_out_change_no_bit(kind, first):
    bank = banked(kind)
    plan, _ = Scheme.of({"*": f"{first}{INTEGERS}"}).on(bank.network)
    model = bank.stitch(plan).model
    found = outputs_of(model, images(8))
    for part in model.modules():
        if isinstance(part, StaticQuantized):
            part.rounds_inputs = True
    assert torch.equal(outputs_of(model, images(8)), found)


def test_what_is_on_its_grid_is_not_rounded_again():
    bank = banked(Residual)
    assert bank.calibration.sources == {"a1": "stem", "a2": "a1", "b2": "b1"}
    wrapped = dict.fromkeys(["stem", "a1", "b1", "b2"], INTEGERS)
    assert rounding(bank.stitch(plan_of(bank.network, **wrapped)).model) == {"stem", "b1"}
    # ... but is where it comes from floats, or from another grid
    other = {"stem": "identity", "b1": INTEGERS.replace("activation_quantization", "activation_quantization(width=6)")}
    assert rounding(bank.stitch(plan_of(bank.network, **{**wrapped, **other})).model) == {"a1", "b1", "b2"}
    chained = plan_of(bank.network, a1=f"low_rank(ratio=0.4) + {INTEGERS}", a2=INTEGERS)
    assert rounding(bank.stitch(chained).model) == {"a1.0"}


def test_the_least_recently_used_entries_go_first(monkeypatch):
    monkeypatch.setattr("plywise.env.bank.bank.ceiling_of_layers", lambda: 3 * 4 * (24 * 144 + 24))
    bank = banked(Plain)
    recipes = [Recipe.parse(f"uniform_quantization(bits={bits})") for bits in (8, 7, 6, 4)]
    first, second = (bank.entry("conv2", recipe) for recipe in recipes[:2])
    assert bank.entry("conv2", recipes[0]) is first
    bank.entry("conv2", recipes[2])
    bank.entry("conv2", recipes[3])
    assert bank.entry("conv2", recipes[0]) is first
    assert bank.entry("conv2", recipes[1]) is not second


def test_plans_of_other_networks_and_impossible_recipes_are_refused():
    bank = banked(Depthwise)
    with pytest.raises(ConfigurationError, match="no recipe for layer 'expand'"):
        bank.stitch(Plan("other", {}))
    with pytest.raises(UnsupportedLayerError, match=r"layer 'filter' cannot take low_rank.*grouped"):
        bank.stitch(plan_of(bank.network, filter="low_rank"))


# The bank's folder

STORED = [
    "uniform_quantization(bits=4)",
    "filter_pruning(ratio=0.5)",
    "low_rank(ratio=0.4) + uniform_quantization(bits=4)",
    "fire(ratio=0.6) + uniform_quantization(bits=4)",
    "micro_mlp(ratio=0.6) + uniform_quantization(bits=4)",
    "uniform_quantization(bits=4) + activation_quantization",
    "codebook(bits=3)",
    "magnitude_pruning(sparsity=0.5)",
]


def equal(first, second):
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    same = all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    return same and [p.requires_grad for p in first.parameters()] == [p.requires_grad for p in second.parameters()]


@pytest.mark.parametrize("recipe", STORED)
def test_another_process_reads_what_one_has_compressed(recipe, tmp_path, monkeypatch):
    first = banked(Plain)
    plan = Scheme.of({"*": recipe}).on(first.network)[0]
    folder = Bank(first.network, first.calibration, BankFolder(tmp_path))
    expected = folder.stitch(plan).model
    assert equal(expected, first.stitch(plan).model)
    for kind in {type(technique) for planned in plan.values() for technique in planned.techniques}:
        if kind.stage < Stage.ACTIVATIONS:
            monkeypatch.setattr(kind, "compress", None)  # nothing is compressed again
    again = Bank(first.network, first.calibration, BankFolder(tmp_path)).stitch(plan).model
    assert equal(again, expected)
    assert torch.equal(outputs_of(again, images()), outputs_of(expected, images()))


def test_a_damaged_entry_is_made_again(tmp_path):
    first = banked(Plain)
    plan = plan_of(first.network, conv2="uniform_quantization(bits=4)")
    for _ in range(2):
        bank = Bank(first.network, first.calibration, BankFolder(tmp_path))
        with pytest.warns(CacheDamageWarning) if any(tmp_path.iterdir()) else nullcontext():
            assert equal(bank.stitch(plan).model, first.stitch(plan).model)
        (stored,) = tmp_path.iterdir()
        content = stored.read_bytes()
        stored.write_bytes(content[:-3])


def test_a_full_folder_takes_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr("plywise.env.bank.bank_folder.CEILING", 1)
    first = banked(Plain)
    plan = plan_of(first.network, conv1="uniform_quantization(bits=4)", head="uniform_quantization(bits=4)")
    bank = Bank(first.network, first.calibration, BankFolder(tmp_path))
    assert equal(bank.stitch(plan).model, first.stitch(plan).model)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_ends_no_search(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("plywise.env.bank.bank_folder.save_packed", full)
    first = banked(Plain)
    plan = plan_of(first.network, conv1="uniform_quantization(bits=4)", head="uniform_quantization(bits=4)")
    bank = Bank(first.network, first.calibration, BankFolder(tmp_path))
    with pytest.warns(UserWarning, match="not kept for other runs: No space left") as told:
        assert equal(bank.stitch(plan).model, first.stitch(plan).model)
    assert len(told) == 1


def test_new_folders_push_out_those_that_nobody_opens(tmp_path, monkeypatch):
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path))
    monkeypatch.setattr("plywise.env.bank.bank_folder.CEILING", 100)
    monkeypatch.setattr("plywise.env.bank.bank_folder.ALL_CEILING", 400)
    for age, name in enumerate("abcd"):
        BankFolder.cached(name)
        (tmp_path / "bank" / name / "entry.safetensors").write_bytes(bytes(90))
        os.utime(tmp_path / "bank" / name, (1000 + age, 1000 + age))
    assert len(list((tmp_path / "bank").iterdir())) == 4
    BankFolder.cached("a")  # there is no new one to make room for, and it has been opened last
    BankFolder.cached("e")
    assert {path.name for path in (tmp_path / "bank").iterdir()} == {"a", "c", "d", "e"}


def test_an_old_empty_folder_that_is_opened_is_not_what_makes_room(tmp_path, monkeypatch):
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path))
    monkeypatch.setattr("plywise.env.bank.bank_folder.CEILING", 100)
    monkeypatch.setattr("plywise.env.bank.bank_folder.ALL_CEILING", 150)
    BankFolder.cached("old")
    os.utime(tmp_path / "bank" / "old", (1000, 1000))
    BankFolder.cached("full")
    (tmp_path / "bank" / "full" / "entry.safetensors").write_bytes(bytes(90))
    BankFolder.cached("old")
    assert {path.name for path in (tmp_path / "bank").iterdir()} == {"old"}
