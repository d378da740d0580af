"""Fine-tuning after compression: it helps, it keeps what compression promised, and it goes on after a kill."""

import copy
import random

import pytest
import torch
from made_up_device import FakeLatency
from tiny_networks import NETWORKS, Identity, build, images, labels
from torch import nn

import plywise
from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.compressors.formats.weight_format import is_short, takes_gain, weight_format
from plywise.compressors.modules.layers import weight_of
from plywise.compressors.modules.static_quantized import StaticQuantized
from plywise.compressors.packing.packed_file import load_packed
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.compressors.sparsity.dynamic_surgery import DynamicSurgery
from plywise.env.bank.bank import Bank
from plywise.env.calibration.calibration import calibrate
from plywise.env.network.menu import legal_recipes
from plywise.env.network.network import Network
from plywise.env.recovery import recovery
from plywise.env.recovery.augmentation import Augmentation
from plywise.env.recovery.gradient_rounding import GradientRounding
from plywise.env.recovery.recovery import PORTIONS, SPLICE_STEPS, recover
from plywise.env.recovery.recovery_settings import GRADIENTS, RecoverySettings, make_recovery
from plywise.env.recovery.recovery_state import STATE_FILE
from plywise.env.recovery.scaled_adam import ScaledAdam
from plywise.env.recovery.trainable import TrainableNetwork
from plywise.env.recovery.trained_leaf import Surgery, TrainedLeaf
from plywise.env.recovery.training_data import AugmentedImages
from plywise.env.score.demand import Demand
from plywise.env.subject import Subject
from plywise.env.task.samples import labelled
from plywise.experiments.commands.study import samples
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.handover.handover import hand_over
from plywise.experiments.handover.report import Origin
from plywise.experiments.handover.run_folder import claimed
from plywise.experiments.networks.training import TrainingSettings, fit, reproducible

MIXED = (
    "magnitude_pruning(sparsity=0.5) + uniform_quantization(bits=3)",
    "low_rank(ratio=0.5) + uniform_quantization(bits=4) + activation_quantization",
    "magnitude_pruning(sparsity=0.6)",
)
BAD = ("magnitude_pruning(sparsity=0.95) + uniform_quantization(bits=4)",) * 3
SURGERY = ("dynamic_surgery + uniform_quantization(bits=4)", "dynamic_surgery", "identity")
LAYERS = ("0", "2", "5")


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def subject(data, tmp_path_factory):
    """A small network that was trained on the digits for a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLYWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        with reproducible(0):
            model = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(),
                nn.Linear(144, 10),
            )  # fmt: skip
            fit(model, data.train, TrainingSettings(epochs=4), "Training")
        yield Subject(model, samples(data.train, 128), samples(data.validation), "tiny", FakeLatency())


def plan_of(recipes):
    return Plan("tiny", {name: Recipe.parse(text) for name, text in zip(LAYERS, recipes, strict=True)})


def training(data):
    return AugmentedImages(data.train, data.augmentation)


def recovered(subject, data, recipes, file=None, track=recovery.untracked, most_bytes=None, **settings):
    chosen = RecoverySettings(**settings)
    return recover(subject, plan_of(recipes), training(data), chosen, file, track, most_bytes)


def leaves(model):
    return [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)]


def same(first, second):
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


def distance(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return sum(float((one - other).abs().sum()) for one, other in pairs)


# What it is for


@pytest.mark.parametrize("mode", ["finetune", "distill"])
def test_a_badly_compressed_network_gets_better(subject, data, mode):
    found = recovered(subject, data, BAD, mode=mode, epochs=3, learning_rate=0.02)
    assert found.accuracy > found.accuracies[0] + 5
    assert len(found.accuracies) == 4
    assert found.accuracies[0] == pytest.approx(subject.measure(plan_of(BAD)).accuracy)
    validation = subject.validation
    assert validation.score(found.model).value == found.accuracy


def test_the_teacher_makes_a_difference(subject, data):
    models = [
        recovered(subject, data, BAD, mode=mode, epochs=3, learning_rate=0.02).model for mode in ("finetune", "distill")
    ]
    assert distance(*models) > 0


def test_it_is_never_worse_than_before(subject, data):
    found = recovered(subject, data, MIXED, epochs=1, learning_rate=0.9)
    assert found.accuracies[1] < found.accuracies[0]
    assert found.best_epoch == 0
    before = subject.bank.stitch(plan_of(MIXED)).model
    assert same(found.model, before)


# What it keeps


def test_the_original_is_not_touched(subject, data):
    before = copy.deepcopy(subject.network.original), copy.deepcopy(subject.network.model)
    recovered(subject, data, MIXED, epochs=1)
    assert same(before[0], subject.network.original)
    assert same(before[1], subject.network.model)


@pytest.mark.parametrize("settings", [{}, {"incremental": True}, {"mode": "distill"}], ids=str)
def test_zeros_formats_and_ranges_survive(subject, data, tmp_path, settings):
    before = subject.bank.stitch(plan_of(MIXED)).model
    run = recovery._Run(
        subject, TrainableNetwork(subject.bank, plan_of(MIXED)), training(data),
        RecoverySettings(epochs=1, **settings),
    )  # fmt: skip
    for _ in range(run.steps):
        run.advance()
    after = run.network.realise()
    assert distance(before, after) > 0
    for old, new in zip(leaves(before), leaves(after), strict=True):
        fmt = weight_format(new)
        assert type(fmt) is type(weight_format(old))
        assert not torch.equal(new.weight, old.weight)
        if fmt is not None:
            assert fmt.bits == weight_format(old).bits
            assert torch.equal(fmt.decode(fmt.encode(new.weight)), new.weight)
    for place, share in ((0, 0.5), (-1, 0.6)):
        zeros = leaves(after)[place].weight == 0
        assert bool(zeros[leaves(before)[place].weight == 0].all() if place else True)
        assert float(zeros.double().mean()) >= share - 0.02
    ranges = [
        [(part.input_range, part.output_range) for part in model.modules() if isinstance(part, StaticQuantized)]
        for model in (before, after)
    ]
    assert ranges[0] == ranges[1] != []
    subject.pack(after, tmp_path / "weights")
    loaded = load_packed(tmp_path / "weights", copy.deepcopy(subject.network.original))
    assert torch.equal(subject.validation.logits(loaded), subject.validation.logits(after))


def test_zeros_from_before_rounding_stay_and_those_of_rounding_may_move(subject, data):
    plan = plan_of(
        ("magnitude_pruning(sparsity=0.5) + ternary(rounding=nearest)", "ternary(rounding=nearest)", "identity")
    )
    network = TrainableNetwork(subject.bank, plan)
    masks = {name: part.mask for name, part in network._leaves.items()}
    assert float((~masks["0.weight"]).double().mean()) == pytest.approx(0.5, abs=0.01)
    assert masks["2.weight"] is None
    assert float((leaves(network.model)[1].weight == 0).double().mean()) > 0.1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_plan_can_be_trained_and_starts_as_it_was_stitched(kind, seed):
    network = Network.of(build(kind), images(4), kind.__name__)
    bank = Bank(network, calibrate(network, labelled(images(), labels())))
    generator = random.Random(seed)
    menus = {layer.name: legal_recipes(layer, network.modules[layer.name]) for layer in network.layers}
    plan = Plan(network.name, {name: generator.choice(menu) for name, menu in menus.items()})
    with torch.no_grad():
        wanted = bank.stitch(plan).model(images(8))
        found = TrainableNetwork(bank, plan).realise()(images(8))
    assert torch.allclose(found, wanted, atol=0.05 * float(wanted.std()))


def test_blocks_are_trained_in_all_their_leaves():
    network = Network.of(build(Identity), images(4), "identity")
    bank = Bank(network, calibrate(network, labelled(images(), labels())))
    chosen = {
        "inner": "fire + dynamic_surgery + uniform_quantization(bits=4)",
        "outer": "micro_mlp(ratio=0.6) + magnitude_pruning + uniform_quantization(bits=4) + activation_quantization",
    }
    plan = Plan("identity", {layer.name: Recipe.parse(chosen.get(layer.name, "identity")) for layer in network.layers})
    trained = TrainableNetwork(bank, plan)
    nn.functional.cross_entropy(trained(images(32)), labels()[:32]).backward()
    names = ["inner.0", "inner.1.0", "inner.1.1", "outer.0.layer", "outer.2.layer"]
    assert all(bool(trained.parameters[f"{name}.weight"].grad.any()) for name in names)
    assert bool(trained.parameters["outer.0.layer.bias"].grad.any())
    with torch.no_grad():
        wanted = bank.stitch(plan).model(images(8))
        assert torch.allclose(trained.realise()(images(8)), wanted, atol=0.05 * float(wanted.std()))


def test_a_scale_for_all_channels_does_not_become_one_for_each(subject):
    """Only scales that the file has already are trained."""
    network = TrainableNetwork(subject.bank, plan_of(("identity", "uniform_quantization(bits=4)", "identity")))
    assert "gain of 2.weight" in network.parameters
    fmt = subject.bank.entry("2", Recipe.parse("fixed_point(width=4)")).weight_format
    assert fmt.scale.shape == (1,)
    assert not takes_gain(fmt, 16)


# What it keeps of the file


KEPT = {
    "2 bits": "uniform_quantization(bits=2)",
    "3 bits": "uniform_quantization(bits=3)",
    "4 bits": "uniform_quantization(bits=4)",
    "pruned": "magnitude_pruning(sparsity=0.6)",
    "pruned, 3 bits": "magnitude_pruning(sparsity=0.6) + uniform_quantization(bits=3)",
    "low rank": "low_rank(ratio=0.5)",
    "low rank, 4 bits": "low_rank(ratio=0.5) + uniform_quantization(bits=4)",
    "ternary": "ternary",
    "binary": "binary",
    "groups": "uniform_quantization(bits=4, granularity=group)",
}
SYMBOLS = 0.02
"""By what share a file may grow because its symbols have moved: their counts alone decide how long their code is."""


def float_tensors(model):
    """Everything that a file holds but symbols, by name: biases, norms, weights without a format, and scales."""
    found = {}
    for name, part in model.named_modules():
        fmt = weight_format(part)
        found |= {f"{name}.{key}": value for key, value in part.named_parameters(recurse=False)}
        if fmt is not None:
            del found[f"{name}.weight"]
            found |= {f"{name}/{key}": value for key, value in fmt.tensors().items()}
    return found


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_the_file_is_no_larger_after_training(subject, data, tmp_path, text):
    """Floats stay as precise as they were; only the code of the symbols may take more or less."""
    recipes = ("identity" if "low_rank" in text else text, text, text)
    network = TrainableNetwork(subject.bank, plan_of(recipes))
    settings = RecoverySettings(epochs=2, learning_rate=0.02)
    run = recovery._Run(subject, network, training(data), settings)
    before = copy.deepcopy(network.realise())
    for _ in range(run.steps):
        run.advance()
    after = network.realise()
    assert distance(before, after) > 0
    old, new = float_tensors(before), float_tensors(after)
    assert [name for name in old if is_short(old[name])] == [name for name in new if is_short(new[name])]
    grown = subject.pack(after, tmp_path / "after") / subject.pack(before, tmp_path / "before") - 1
    assert grown <= (SYMBOLS if "quantization" in text or text == "ternary" else 0.0)


def test_an_epoch_that_breaks_the_storage_ceiling_is_passed_over(subject, data, monkeypatch):
    def found(most_bytes):
        sizes = iter((100, 110, 120, 130))
        monkeypatch.setattr(subject, "packed_bytes", lambda _: next(sizes))
        return recovered(subject, data, BAD, most_bytes=most_bytes, epochs=3, learning_rate=0.02)

    free, held, broken_from_the_start = found(None), found(110), found(99)
    assert free.sizes == (100, 110, 120, 130)
    assert free.best_epoch > 1, "the ceiling would pass over nothing"
    assert held.best_epoch == 1
    assert held.accuracy == free.accuracies[1]
    assert not same(held.model, free.model)
    assert broken_from_the_start.best_epoch == free.best_epoch


# Going on after a kill


class Killed:
    """A progress bar that presses Ctrl-C before a step."""

    def __init__(self, at):
        self.at = at

    def __call__(self, items, what, count):
        for place, item in enumerate(items):
            if place == self.at:
                raise KeyboardInterrupt
            yield item


@pytest.mark.parametrize("recipes", [MIXED, SURGERY], ids=["mixed", "surgery"])
@pytest.mark.parametrize("settings", [{}, {"incremental": True}], ids=["plain", "incremental"])
def test_a_killed_run_ends_with_the_same_bits(subject, data, tmp_path, monkeypatch, recipes, settings):
    monkeypatch.setattr(recovery, "CHECKPOINT_SECONDS", 0.0)
    file = tmp_path / STATE_FILE
    whole = recovered(subject, data, recipes, epochs=2, **settings)
    for at in (7, 12):
        with pytest.raises(KeyboardInterrupt):
            recovered(subject, data, recipes, file, Killed(at), epochs=2, **settings)
    resumed = recovered(subject, data, recipes, file, epochs=2, **settings)
    assert resumed.accuracies == whole.accuracies
    assert resumed.best_epoch == whole.best_epoch
    assert same(resumed.model, whole.model)


def test_the_state_of_another_run_is_refused(subject, data, tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "CHECKPOINT_SECONDS", 0.0)
    file = tmp_path / STATE_FILE
    with pytest.raises(KeyboardInterrupt):
        recovered(subject, data, MIXED, file, Killed(1), epochs=1)
    for other in ({"epochs": 2}, {"epochs": 1, "mode": "distill"}, {"epochs": 1, "seed": 1}):
        with pytest.raises(ConfigurationError, match="is of another run"):
            recovered(subject, data, MIXED, file, **other)
    with pytest.raises(ConfigurationError, match="is of another run"):
        recovered(subject, data, BAD, file, epochs=1)


@pytest.mark.parametrize("keep", [0, 8, 100, 2000])
def test_a_damaged_state_is_refused(subject, data, tmp_path, monkeypatch, keep):
    monkeypatch.setattr(recovery, "CHECKPOINT_SECONDS", 0.0)
    file = tmp_path / STATE_FILE
    with pytest.raises(KeyboardInterrupt):
        recovered(subject, data, MIXED, file, Killed(1), epochs=1)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(FileFormatError, match=r"is damaged .* delete it to start"):
        recovered(subject, data, MIXED, file, epochs=1)


# What acts in it


def test_surgery_brings_weights_back_and_takes_others():
    leaf = TrainedLeaf("layer", mask=torch.tensor([[True, True, False, False]]))
    leaf.surgery = Surgery(DynamicSurgery(), torch.ones(1, 4))
    leaf.splice(torch.tensor([[1.0, 0.1, 1.5, 0.1]]))
    assert leaf.mask.tolist() == [[True, False, True, False]]


def test_gradients_reach_weights_that_surgery_took_away_and_no_others(subject, data):
    network = TrainableNetwork(
        subject.bank, plan_of(("dynamic_surgery", "magnitude_pruning(sparsity=0.5)", "identity"))
    )
    network(data.train.inputs(0, 32)).square().sum().backward()
    for name, reached in (("0.weight", True), ("2.weight", False)):
        masked = ~network._leaves[name].mask
        assert bool((network.parameters[name].grad[masked] != 0).any()) == reached


def test_fine_tuning_splices(subject, data):
    network = TrainableNetwork(subject.bank, plan_of(SURGERY))
    run = recovery._Run(subject, network, training(data), RecoverySettings(epochs=2, learning_rate=0.1))
    before = {name: part.mask.clone() for name, part in network._leaves.items() if part.mask is not None}
    assert set(before) == {"0.weight", "2.weight"}
    for _ in range(2 * SPLICE_STEPS + 1):
        run.advance()
    model = network.realise()
    for name, mask in before.items():
        weight = weight_of(model.get_submodule(name.removesuffix(".weight")))
        assert bool((weight[~mask] != 0).any()), "no weight came back"
        assert bool((weight[~network._leaves[name].mask] == 0).all())


def test_incremental_quantisation_freezes_portion_by_portion(subject, data):
    network = TrainableNetwork(subject.bank, plan_of(("uniform_quantization(bits=4)",) * 2 + ("identity",)))
    run = recovery._Run(subject, network, training(data), RecoverySettings(epochs=1, incremental=True))
    fmt, dense = network._leaves["2.weight"].fmt, network.parameters["2.weight"]
    held, shares = None, []
    for _ in range(run.steps):
        run.advance()
        frozen = network._leaves["2.weight"].frozen
        shares.append(float(frozen.double().mean()))
        if held is not None:
            assert bool(frozen[held[0]].all()), "a frozen weight is free again"
            assert torch.equal(dense[held[0]], held[1][held[0]]), "a frozen weight has moved"
        held = frozen.clone(), dense.detach().clone()
        rounded = fmt.decode(fmt.encode(dense.detach()))
        assert torch.equal(rounded[frozen], dense[frozen])
        assert not torch.equal(rounded[~frozen], dense[~frozen])
    assert sorted(set(shares)) == pytest.approx(PORTIONS, abs=0.01)


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("text", ["fixed_point(width=4, point=-4)", "dynamic_fixed_point(width=4)", "ternary"])
def test_gradients_are_rounded(subject, data, monkeypatch, text, kind):
    rounding = GradientRounding(RecoverySettings(gradients=text).quantizer(), (kind,))
    seen = []
    plain = rounding.round
    monkeypatch.setattr(rounding, "round", lambda gradient: seen.append(plain(gradient)) or seen[-1])
    network = TrainableNetwork(subject.bank, plan_of(("identity",) * 3))
    with rounding.errors(network):
        network(data.train.inputs(0, 64)).square().sum().backward()
    rounding.parameters(network.parameters)
    assert len(seen) == 3
    assert all(len(gradient.unique()) <= 16 for gradient in seen)
    for parameter in network.parameters.values():
        is_rounded = any(parameter.grad is gradient for gradient in seen)
        assert is_rounded == (kind == ("weights" if parameter.dim() > 1 else "biases"))


def test_errors_are_rounded_on_their_way_and_only_in_training(subject, data):
    """Steps so coarse that every error becomes zero: nothing reaches the weights."""
    rounding = GradientRounding(RecoverySettings(gradients="fixed_point(width=2, point=30)").quantizer(), ("errors",))
    network = TrainableNetwork(subject.bank, plan_of(("identity",) * 3))
    with rounding.errors(network):
        network(data.train.inputs(0, 8)).square().sum().backward()
    assert all(float(parameter.grad.abs().max()) == 0 for parameter in network.parameters.values())
    assert not any(part._forward_hooks for part in network.model.modules())


def test_rounded_gradients_change_the_result(subject, data):
    plain, rounded = (
        recovered(subject, data, BAD, epochs=3, learning_rate=0.02, gradients=text).model
        for text in (None, "dynamic_fixed_point(width=4)")
    )
    assert distance(plain, rounded) > 0


def test_a_scaled_step_is_that_of_adam_times_the_size():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 5, generator=generator)
    size = torch.rand(6, 1, generator=generator) + 0.1
    plain, scaled = start.clone().requires_grad_(), start.clone().requires_grad_()
    adam, ours = torch.optim.Adam([plain], 1e-2), ScaledAdam([(scaled, size)], 1e-2)
    where = scaled.data_ptr()
    for _ in range(20):
        plain.grad = scaled.grad = torch.randn(6, 5, generator=generator)
        adam.step()
        ours.step()
    assert torch.allclose(scaled - start, (plain - start) * size, rtol=1e-4, atol=1e-6)
    assert scaled.data_ptr() == where


# Images


@pytest.mark.parametrize("mirror", [False, True])
def test_images_move_by_an_eighth_and_only_photos_are_mirrored(mirror):
    pixels = torch.zeros(400, 3, 32, 32, dtype=torch.uint8)
    pixels[:, :, 10, 6] = 200
    found = Augmentation(mirror)(pixels, torch.Generator().manual_seed(0))
    assert found.shape == pixels.shape
    assert found.dtype == torch.uint8
    image, _, row, column = found.nonzero(as_tuple=True)
    assert torch.equal(image.view(400, 3), torch.arange(400)[:, None].expand(400, 3))
    assert set(row.tolist()) == set(range(6, 15))
    left, right = set(range(2, 11)), set(range(21, 30))
    assert set(column.tolist()) == (left | right if mirror else left)


def test_digits_are_not_mirrored(data):
    assert not data.augmentation.mirror


# The whole way


def test_the_hand_over_is_of_the_recovered_network(subject, data, tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "CHECKPOINT_SECONDS", 0.0)
    test = samples(data.test)
    origin = Origin("net.py:make", "digits", 0, "plan", 0, 0.0, "made up")
    with claimed(tmp_path):
        found = recovered(subject, data, BAD, tmp_path / STATE_FILE, epochs=2, learning_rate=0.02)
        assert (tmp_path / STATE_FILE).exists()
        report = hand_over(subject, plan_of(BAD), Demand(50.0), test, tmp_path, origin, found)
    files = ["model.onnx", "model.onnx.xz", "plan.yaml", "report.html", "report.json", "weights.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert report["compressed"]["torch_accuracy"] == test.score(found.model).value
    assert report["validation"]["compressed_accuracy"] == found.accuracy > found.accuracies[0]
    said = report["recovery"]
    assert (said["recover"], said["epochs"], said["best_epoch"]) == ("finetune", 2, found.best_epoch)
    assert said["validation_accuracies"] == list(found.accuracies)
    loaded = plywise.load(tmp_path, copy.deepcopy(subject.network.original))
    assert torch.equal(test.logits(loaded), test.logits(found.model))


# Wrong arguments


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recover": "destill"}, "unknown way to recover 'destill'. Did you mean 'distill'"),
        ({"recover": "finetune", "epochs": 0}, "epochs=0 must be 1 to 100,000"),
        ({"epochs": 3}, "epochs mean nothing without fine-tuning: add 'recover', one of finetune, distill"),
        ({"incremental": True, "gradients": "binary"}, "incremental, gradients mean nothing without"),
        ({"recover": "finetune", "gradients": "magnitude_pruning"}, "must be one quantiser of weights"),
        ({"recover": "finetune", "gradients": "fixed_pont"}, "Did you mean 'fixed_point'"),
        ({"recover": "finetune", "gradients": "binary", "gradients_of": ("error",)}, "Did you mean 'errors'"),
        ({"recover": "finetune", "gradients_of": ("errors",)}, "gradients_of means nothing without 'gradients'"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(tmp_path, options, said):
    with pytest.raises(ConfigurationError, match=f".*{said}"):
        plywise.compress("zoo:digits-mlp", "digits", tmp_path / "out", method="knapsack", **options)
    assert not (tmp_path / "out").exists()


def test_nothing_is_recovered_unless_asked():
    assert make_recovery(None) is None
    assert make_recovery("distill").epochs == 3
