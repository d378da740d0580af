"""Networks over volumes: convolutions of three axes, cut, factored, in integers, packed and exported."""

import numpy as np
import pytest
import torch
from tiny_networks import build
from torch import nn
from torch.nn import functional as F

from plywise.compressors.modules.composition import Chain
from plywise.compressors.packing.packed_file import load_packed, save_packed
from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank.bank import Bank
from plywise.env.bank.repair import NONE
from plywise.env.calibration.calibration import calibrate
from plywise.env.costs.chains import realised_chain
from plywise.env.costs.graph_template import GraphTemplate
from plywise.env.network.network import Network
from plywise.env.network.scheme import Scheme
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.operation_graph import operation_graph
from plywise.env.runtime.runtime import open_session, run_session
from plywise.env.task.samples import labelled


class Volumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv3d(2, 16, 3, padding=1, bias=False), nn.BatchNorm3d(16)
        self.mix = nn.Conv3d(16, 16, 3, stride=(1, 2, 2), padding=1)
        self.twin = nn.Conv3d(16, 16, 1)
        self.tail = nn.BatchNorm3d(16)
        self.up = nn.ConvTranspose3d(16, 12, 2, stride=2)
        self.head = nn.Linear(12, 5)
        for layer in (self.stem, self.mix, self.twin, self.up):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, inputs):
        out = F.relu(self.mix(F.relu(self.norm(self.stem(inputs)))))
        out = self.tail(F.relu(self.twin(out)) + out)
        return self.head(F.relu(self.up(out)).mean((2, 3, 4)))


def volumes(count=48):
    rough = torch.randn(count, 2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    loudness = torch.linspace(0.5, 2, count).view(-1, 1, 1, 1, 1)
    return (rough + F.avg_pool3d(rough, 3, 1, 1) * 3) * loudness


@pytest.fixture(scope="module")
def bank():
    network = Network.of(build(Volumes), volumes(4), "volumes")
    labels = torch.randint(5, (48,), generator=torch.Generator().manual_seed(2))
    return Bank(network, calibrate(network, labelled(volumes(), labels)))


def test_channels_are_cut_through_sums_and_norms(bank):
    network = bank.network
    assert set(network.skipped) == {"tail"}
    assert type(network.modules["norm"]) is nn.Identity
    leaders = {group.leader: {side.module for side in group.producers} for group in network.groups}
    assert leaders == {"stem": {"stem"}, "mix": {"mix", "twin", "tail"}, "up": {"up"}}


@pytest.mark.parametrize(
    "recipe",
    [
        "filter_pruning(ratio=0.5) + uniform_quantization(bits=4) + activation_quantization",
        "low_rank(ratio=0.6) + uniform_quantization(bits=7) + activation_quantization",
    ],
)
def test_plans_are_packed_and_exported(recipe, bank, tmp_path):
    network = bank.network
    plan, _ = Scheme.of({"*": recipe}).on(network)
    model = bank.stitch(plan).model
    with torch.no_grad():
        expected, whole, raw = (net(volumes()) for net in (model, network.model, bank.stitch(plan, NONE).model))
    assert (expected - whole).square().mean() < (raw - whole).square().mean()
    save_packed(model, network.original, tmp_path / "weights", {})
    with torch.no_grad():
        assert torch.equal(load_packed(tmp_path / "weights", network.original)(volumes()), expected)
    assert export_onnx(model, volumes(4), tmp_path / "model.onnx")
    found = run_session(open_session(tmp_path / "model.onnx"), volumes().numpy())
    assert np.abs(found - expected.numpy()).max() < 0.02 * float(expected.abs().max())
    if "filter" in recipe:
        chains = {layer.name: realised_chain(model.get_submodule(layer.name), layer) for layer in network.layers}
        graph = GraphTemplate(network).filled(chains, {"tail": nn.BatchNorm3d(8)})
        run_session(open_session(graph), volumes(1).numpy())


@pytest.mark.parametrize("recipe", ["low_rank(ratio=0.5)", "low_rank(ratio=0.5, sides=both)", "fire(ratio=0.6)"])
def test_chains_of_three_axes_are_what_they_amount_to(recipe, bank):
    chain = bank.entry("mix", Recipe.parse(recipe))
    assert isinstance(chain, Chain)
    maps = torch.randn(2, 16, 4, 6, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = F.conv3d(maps, chain.weight, chain.bias, stride=(1, 2, 2), padding=1)
        assert torch.allclose(whole, chain(maps), atol=1e-4)
    layer = next(layer for layer in bank.network.layers if layer.name == "mix")
    operations = realised_chain(chain, layer)
    assert operations[-1].output_shape == layer.output_shape
    run_session(open_session(operation_graph(operations)), maps[:1].numpy())
