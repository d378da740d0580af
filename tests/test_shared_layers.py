"""Layers that run several times, and layers that have one weight."""

import numpy as np
import onnx
import pytest
import torch
from made_up_device import FakeLatency
from tiny_banks import plan_of
from torch import nn
from torch.nn import functional as F

from plywise.compressors.errors import FileFormatError, UnsupportedLayerError
from plywise.compressors.formats.weight_format import weight_format
from plywise.compressors.packing import packed_file
from plywise.compressors.packing.packed_file import load_packed, save_packed
from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank.bank import Bank
from plywise.env.bank.repair import FULL, NONE
from plywise.env.bank.scorer import Scorer
from plywise.env.calibration.calibration import calibrate
from plywise.env.costs.energy import energy_mj
from plywise.env.costs.graph_template import GraphTemplate
from plywise.env.costs.network_latency import NetworkLatency
from plywise.env.costs.trial_graphs import shapes_of
from plywise.env.network.menu import legal_recipes
from plywise.env.network.network import Network
from plywise.env.prices.plan_costs import PlanCosts
from plywise.env.prices.pricing import original_storage
from plywise.env.recovery.trainable import TrainableNetwork
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.runtime import open_session, random_inputs, run_session, running_model
from plywise.env.task.judge import CLASSIFIER
from plywise.env.task.samples import Samples

BITS, ZEROS = "uniform_quantization(bits=4)", "magnitude_pruning(sparsity=0.5) + uniform_quantization(bits=4)"


class TiedHead(nn.Module):
    """The head has the weight of the embedding, as in language models."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(300, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 300)
        self.head.weight = self.embedding.weight

    def forward(self, words):
        return self.head(torch.tanh(self.hidden(self.embedding(words).mean(1))))


class TwoLinear(nn.Module):
    """Two linear layers with one weight and biases of their own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.first(x)))))


class Siamese(nn.Module):
    """The encoder runs on both inputs, of different sizes."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.f = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1), nn.Linear(32, 6)

    def encode(self, x):
        return F.relu(self.b(F.relu(self.a(x)))).mean((2, 3))

    def forward(self, x, y):
        return self.f((self.encode(x) - self.encode(y)).abs())


class Windows(nn.Module):
    """A linear layer sees four windows of each item as items of the batch."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(64, 5)

    def forward(self, x):
        return self.head(F.relu(self.body(x.reshape(-1, 8))).reshape(len(x), -1))


def batch_of(kind, count=64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    if kind is TiedHead:
        return (torch.randint(300, (count, 8), generator=generator),)
    if kind is Siamese:
        return torch.randn(count, 3, 16, 16, generator=generator), torch.randn(count, 3, 12, 12, generator=generator)
    shape = {TwoLinear: (24,), Crossed: (24,), Windows: (32,), Levels: (3, 10, 20), Sequences: (13, 8)}[kind]
    return (torch.randn(count, *shape, generator=generator),)


def build(kind):
    torch.manual_seed(0)
    return kind().eval()


def banked(kind):
    network = Network.of(build(kind), batch_of(kind, 4), kind.__name__)
    batches = [batch_of(kind, 32, seed) for seed in range(4)]
    calibration = Samples([(*batch, torch.zeros(32, dtype=torch.int64)) for batch in batches], judge(network))
    return Bank(network, calibrate(network, calibration))


def judge(network):
    return type(CLASSIFIER)(network.forward, CLASSIFIER.metric, CLASSIFIER.distance)


KINDS = (TiedHead, TwoLinear, Siamese, Windows)


@pytest.mark.parametrize("recipe", [BITS, ZEROS, "identity"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_is_stitched_packed_and_exported(kind, recipe, tmp_path):
    bank = banked(kind)
    network = bank.network
    model = bank.stitch(plan_of(network, recipe)).model
    batch = batch_of(kind, 16, 9)
    with torch.no_grad():
        expected = model(*batch)
    assert torch.isfinite(expected).all()
    size = save_packed(model, network.original, tmp_path / "weights", {})
    loaded = load_packed(tmp_path / "weights", build(kind))
    with torch.no_grad():
        assert torch.equal(loaded(*batch), expected)
    if recipe == "identity":
        return
    assert size < 0.35 * original_storage(network)
    if recipe == BITS:
        with torch.no_grad():
            found = running_model(exported(model, network, tmp_path), network.interface, model)(*batch)
        assert (found - expected).abs().max() < 1e-4


def exported(model, network, folder):
    path = folder / "model.onnx"
    export_onnx(model, network.interface, path)
    return path


# One weight of several layers


@pytest.mark.parametrize(("kind", "leader", "other"), [(TiedHead, "embedding", "head"), (TwoLinear, "first", "second")])
def test_a_weight_stays_one_in_memory_in_the_file_and_in_the_runtime(kind, leader, other, tmp_path):
    bank = banked(kind)
    network = bank.network
    assert [layer.shares for layer in network.layers if layer.name == leader] == [(other,)]
    assert network.skipped[other] == f"has the weight of {leader!r} and becomes what that becomes"
    model = bank.stitch(plan_of(network, BITS)).model
    size = save_packed(model, network.original, tmp_path / "weights", {})
    for found in (model, load_packed(tmp_path / "weights", build(kind))):
        first, second = found.get_submodule(leader), found.get_submodule(other)
        assert first.weight is second.weight
        assert weight_format(first) is weight_format(second) is not None
    rows = network.modules[leader].weight.numel()
    assert size < original_storage(network) / (6 if kind is TiedHead else 4)
    assert original_storage(network) < 1.05 * sum(p.numel() * 4 for p in network.original.parameters()) + 2000
    stored = onnx.load(exported(model, network, tmp_path)).graph.initializer
    assert sum(np.prod(tensor.dims) >= rows / 2 for tensor in stored) == 1


def test_only_values_of_a_shared_weight_may_change():
    bank = banked(TiedHead)
    network = bank.network
    layer = network.layers[0]
    assert network.unsupported("embedding", Recipe.parse("low_rank(ratio=0.4)")).startswith(
        "low_rank: head has the same"
    )
    assert network.unsupported("embedding", Recipe.parse(ZEROS)) is None
    texts = [str(recipe) for recipe in legal_recipes(layer, network.modules["embedding"])]
    assert BITS in texts
    assert not any("low_rank" in text for text in texts)
    with pytest.raises(UnsupportedLayerError, match="head has the same weight"):
        bank.stitch(plan_of(network, embedding="low_rank(ratio=0.4)"))


def test_ties_come_from_the_file(tmp_path, monkeypatch):
    bank = banked(TwoLinear)
    model = bank.stitch(plan_of(bank.network, "identity")).model
    save_packed(model, bank.network.original, tmp_path / "weights", {})

    apart = build(TwoLinear)
    apart.second = nn.Linear(24, 24)  # what is tied in the file is tied in it afterwards
    loaded = load_packed(tmp_path / "weights", apart)
    assert loaded.second.weight is loaded.first.weight
    monkeypatch.setattr(packed_file, "TIED", "Other")
    with pytest.raises(FileFormatError):
        load_packed(tmp_path / "weights", apart)


def test_a_shared_weight_is_trained_once():
    bank = banked(TiedHead)
    network = TrainableNetwork(bank, plan_of(bank.network, BITS))
    network(*batch_of(TiedHead, 8)).square().sum().backward()
    with torch.no_grad():
        for parameter in network.parameters.values():
            parameter -= 0.01 * (torch.zeros(()) if parameter.grad is None else parameter.grad.sign())
    model = network.realise()
    assert model.head.weight is model.embedding.weight
    with torch.no_grad():
        assert torch.allclose(model(*batch_of(TiedHead, 8)), network(*batch_of(TiedHead, 8)), atol=1e-4)


# Several runs of one layer


def test_runs_are_counted_in_all_costs():
    bank = banked(Siamese)
    network = bank.network
    runs = {layer.name: layer.runs for layer in network.layers}
    assert runs == {"a": 1 + 144 / 256, "b": pytest.approx(1 + 36 / 64), "f": 1.0}
    assert network.macs["a"] == round(runs["a"] * 8 * 8 * 16 * 27)
    assert {layer.name: layer.runs for layer in banked(Windows).network.layers} == {"body": 4.0, "head": 1.0}
    costs = PlanCosts(network, NetworkLatency(network, FakeLatency()))
    alone = FakeLatency().milliseconds([network.operations[name] for name in runs])
    assert costs.measure(bank.stitch(plan_of(network)))[1] == pytest.approx(float(alone @ list(runs.values())))


def test_statistics_are_those_of_all_runs():
    bank = banked(Siamese)
    with torch.no_grad():
        outputs = [bank.network.modules["a"](x) for seed in range(4) for x in batch_of(Siamese, 32, seed)]
    whole = torch.cat([each.movedim(1, 0).flatten(1) for each in outputs], 1)
    moments = bank.calibration.outputs["a"]
    assert torch.allclose(moments.mean, whole.mean(1), atol=0.02)  # each run counts by its images


def test_channels_of_a_layer_that_runs_twice_are_cut_for_both():
    bank = banked(Siamese)
    assert {group.leader for group in bank.network.groups} == {"a", "b"}
    plan = plan_of(bank.network, a="filter_pruning(ratio=0.5)", b="filter_pruning(ratio=0.5)")
    model = bank.stitch(plan).model
    assert (model.a.out_channels, model.b.out_channels, model.f.in_features) == (8, 16, 16)
    assert model(*batch_of(Siamese, 2)).shape == (2, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_graphs_hold_every_run(kind):
    network = banked(kind).network
    session = open_session(GraphTemplate(network, 2).filled(network.operations))
    feeds = {name: tensor.numpy() for name, tensor in network.interface.at(2).items()}
    (outputs,) = session.run(None, feeds)
    assert outputs.shape[0] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_remembered_outputs_are_those_of_the_network(kind):
    bank = banked(kind)
    scorer, batch = Scorer(bank), batch_of(kind, 16, 5)
    for texts in ({}, {"f": BITS}, {"head": BITS}, {"b": ZEROS}):
        named = {name: text for name, text in texts.items() if name in {layer.name for layer in bank.network.layers}}
        plan = plan_of(bank.network, BITS, **named)
        with torch.no_grad():
            found = scorer.run(plan, lambda model: model(*batch))[1]
            assert torch.equal(found, bank.stitch(plan).model(*batch))


class Levels(nn.Module):
    """A head runs on maps of two sizes, and a block three times on what it has made."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 5, 1)
        self.block = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, x):
        low = F.relu(self.a(x))
        high = F.relu(self.b(low))
        z = torch.cat([self.head(low).mean((2, 3)), self.head(high).amax((2, 3))], 1)
        for _ in range(3):
            z = z + self.block(z)
        return z


@pytest.mark.parametrize("recipe", ["uniform_quantization(bits=2)", "magnitude_pruning(sparsity=0.7)"])
def test_the_repair_of_one_run_is_right_for_the_others(recipe):
    bank, (images,) = banked(Levels), batch_of(Levels, 256, 9)
    with torch.no_grad():
        expected = build(Levels)(images)
        repaired, plain = (bank.stitch(plan_of(bank.network, recipe), each).model(images) for each in (FULL, NONE))
    assert (repaired - expected).square().mean() < (plain - expected).square().mean()


class Crossed(nn.ModuleList):
    """One layer is in two modules; it has its name from the one that runs later."""

    def __init__(self):
        shared = nn.Linear(24, 24)
        own = [nn.Sequential(nn.Linear(24, 24), nn.ReLU()) for _ in range(5)]
        super().__init__([nn.Sequential(shared, nn.ReLU()), *own, nn.Sequential(nn.Linear(24, 24), nn.ReLU(), shared)])

    def forward(self, x):
        for place in (1, 6, 2, 3, 4, 0, 5):
            x = self[place](x)
        return x


def test_what_a_layer_of_two_modules_makes_is_not_remembered():
    bank, batch = banked(Crossed), batch_of(Crossed, 16, 5)
    scorer, network = Scorer(bank), bank.network
    for changed in ("2.0", "3.0", "4.0"):
        plan = plan_of(network, **{"0.0": "uniform_quantization(bits=2)", changed: BITS})
        with torch.no_grad():
            found = scorer.run(plan, lambda model: model(*batch))[1]
            assert torch.equal(found, bank.stitch(plan).model(*batch))


class Normed(nn.Module):
    """A convolution and its BatchNorm run twice; layers with one weight have BatchNorms of their own."""

    def __init__(self):
        super().__init__()
        self.a, self.n, self.first, self.second = (
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
        )
        self.second.weight = self.first.weight
        self.norms = nn.ModuleList(nn.BatchNorm1d(8) for _ in range(2))

    def forward(self, x):
        z = [F.relu(self.n(self.a(each))).mean((2, 3)) for each in x.chunk(2, -1)]
        return self.norms[1](self.second(F.relu(self.norms[0](self.first(z[0] - z[1])))))


def test_norms_are_merged_into_what_runs_as_often_and_never_into_one_of_several_uses():
    network = Network.of(build(Normed), torch.randn(4, 3, 8, 16))
    assert isinstance(network.modules["n"], nn.Identity)
    assert isinstance(network.modules["norms.0"], nn.BatchNorm1d)
    assert network.modules["first"].weight is network.modules["second"].weight


def test_a_tied_layer_has_its_price():
    bank = banked(TiedHead)
    network, device = bank.network, FakeLatency()
    (head,) = network.tied
    assert (head.name, head.runs, network.macs["head"]) == ("head", 1.0, 300 * 32)
    whole = NetworkLatency(network, device)
    chains = [*network.operations.values(), network.tied_operations["head"]]
    found = PlanCosts(network, whole).measure(bank.stitch(plan_of(network)))
    assert found[1] == pytest.approx(device.milliseconds(chains).sum())
    assert found[2] == pytest.approx(sum(energy_mj(chain, device.device.energies) for chain in chains))


def test_a_weight_of_several_layers_suits_the_inputs_of_all():
    bank = banked(TiedHead)
    table, words = bank.network.modules["embedding"], torch.cat([batch_of(TiedHead, 32, seed)[0] for seed in range(4)])
    with torch.no_grad():
        hidden = torch.tanh(bank.network.modules["hidden"](table(words).mean(1)))
    head = hidden.T.cov(correction=0)
    found = bank.calibration.statistics["embedding"].covariance[0]
    assert torch.allclose(found, (torch.eye(32) + head / head.diagonal().mean()) / 2, atol=1e-3)


class Sequences(nn.Module):
    """A layer runs on sequences of two lengths."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.body(x[:, :9]).mean(1) - self.body(x[:, 9:]).mean(1))


def test_whole_graphs_have_the_shapes_of_each_run():
    network = banked(Sequences).network
    plan = plan_of(network, "uniform_quantization(bits=7) + activation_quantization")
    session = open_session(GraphTemplate(network, 2).filled(*shapes_of(network, plan)))
    assert run_session(session, random_inputs(session, (2, 13, 8))).shape == (2, 5)
