"""What takes a layer's place answers as the layer did, where a forward asks it for its settings."""

import numpy as np
import pytest
import torch
from tiny_networks import build, images, labels
from torch import nn
from torch.nn import functional as F

from plywise.compressors.modules.assembly import assemble
from plywise.compressors.packing.packed_file import load_packed, save_packed
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank.bank import Bank
from plywise.env.calibration.calibration import calibrate
from plywise.env.costs.graph_template import GraphTemplate
from plywise.env.network.network import Network
from plywise.env.recovery.trainable import TrainableNetwork
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.runtime import open_session, run_session
from plywise.env.task.samples import labelled


class Asking(nn.Module):
    """Reads widths, types and kernels from its layers, and reshapes by them."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 2, 2)
        self.mix = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 8 * 16)
        self.up = nn.ConvTranspose2d(8, 16, 2, 2)
        self.head = nn.Linear(16, 5)

    def forward(self, inputs):
        inputs = inputs.to(self.patch.weight.dtype).to(self.patch.weight.device)
        out = F.relu(self.patch(inputs[..., : inputs.shape[-1] // self.patch.stride[0] * self.patch.kernel_size[0]]))
        out = F.relu(self.mix(out))
        assert out.shape[1] == self.mix.out_channels == self.fc.in_features
        out = F.relu(self.fc(out.mean((2, 3)))).view(-1, self.up.in_channels, 4, 4)
        assert self.fc.weight.shape == (self.fc.out_features, self.fc.in_features)
        assert self.fc.bias is not None
        assert self.up.weight.shape[:2] == (self.up.in_channels, self.up.out_channels)
        return self.head(F.relu(self.up(out)).mean((2, 3)).view(-1, self.head.in_features))


@pytest.fixture(scope="module")
def bank():
    network = Network.of(build(Asking), images(4), "asking")
    return Bank(network, calibrate(network, labelled(images(), labels())))


PLANS = {
    "cut": (
        "filter_pruning(ratio=0.5) + uniform_quantization(bits=4) + activation_quantization",
        {"fc": "uniform_quantization(bits=6) + activation_quantization", "up": "codebook(bits=3)", "head": "identity"},
    ),
    "chains": (
        "low_rank(ratio=0.5)",
        {
            "mix": "fire(ratio=0.6) + uniform_quantization(bits=6) + activation_quantization",
            "fc": "block_diagonal",
            "up": "identity",
            "head": "identity",
        },
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_forward_may_ask_what_has_taken_a_layers_place(name, bank, tmp_path):
    recipe, others = PLANS[name]
    network = bank.network
    assert not network.skipped
    plan = Plan(network.name, {layer.name: Recipe.parse(others.get(layer.name, recipe)) for layer in network.layers})
    model = bank.stitch(plan).model
    with torch.no_grad():
        expected = model(images())
    assert model.fc.in_features == model.mix.out_channels == (8 if name == "cut" else 16)
    save_packed(model, network.original, tmp_path / "weights", {})
    loaded = load_packed(tmp_path / "weights", network.original)
    with torch.no_grad():
        assert torch.equal(loaded(images()), expected)
    assert export_onnx(model, images(4), tmp_path / "model.onnx")
    found = run_session(open_session(tmp_path / "model.onnx"), images().numpy())
    assert np.abs(found - expected.numpy()).max() < 0.02 * float(expected.abs().max())
    with torch.no_grad():
        assert torch.allclose(TrainableNetwork(bank, plan).realise()(images()), expected, atol=1e-4)


def test_the_weight_of_a_chain_is_what_it_amounts_to(bank):
    maps = images(12).view(2, 18, 8, 8)[:, :16]
    for recipe in ("low_rank(ratio=0.5, sides=output)", "low_rank(ratio=0.5)", "fire(ratio=0.6)"):
        chain = bank.entry("mix", Recipe.parse(recipe))
        with torch.no_grad():
            assert torch.allclose(F.conv2d(maps, chain.weight, chain.bias, padding=1), chain(maps), atol=1e-4)
    for recipe in ("block_diagonal(blocks=2)", "low_rank(ratio=0.5)"):
        chain = bank.entry("fc", Recipe.parse(recipe))
        with torch.no_grad():
            rows = maps[:, :, 0, 0]
            assert torch.allclose(F.linear(rows, chain.weight, chain.bias), chain(rows), atol=1e-4)


def test_graphs_with_gaps_answer_too(bank):
    template = GraphTemplate(bank.network)
    assert len(template.nearest) == len(bank.network.layers)


def test_settings_of_a_users_own_are_kept():
    layer = nn.Conv2d(3, 4, 1)
    layer.scale = 2.0
    model = nn.Sequential(layer)
    assert assemble(model, {"0": nn.Conv2d(3, 2, 1)})[0].scale == 2.0
