"""Layers of the user's own around a plain layer of torch, and others that compute what a plain one does."""

import numpy as np
import pytest
import torch
from tiny_networks import build, images, labels
from torch import nn
from torch.nn import functional as F

from plywise.compressors.packing.packed_file import load_packed, save_packed
from plywise.env.bank.bank import Bank
from plywise.env.calibration.calibration import calibrate
from plywise.env.network.network import Network
from plywise.env.network.scheme import Scheme
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.runtime import open_session, run_session
from plywise.env.task.samples import labelled


class SameConv(nn.Conv2d):
    """Pads so that the map keeps its extent, and scales what it makes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1) * 1.5)

    def forward(self, inputs):
        assert inputs.shape[1] == self.in_channels == self.weight.shape[1]
        height, width = (size // 2 for size in self.kernel_size)
        return super().forward(F.pad(inputs, (width, width, height, height))) * self.gain


class NormedConv(nn.Conv2d):
    """Calls the kernel itself, and then parts of its own, as layers of detectors do."""

    def __init__(self, *args, norm=None, activation=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm, self.activation = norm, activation

    def forward(self, inputs):
        out = F.conv2d(inputs, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        out = out if self.norm is None else self.norm(out)
        return out if self.activation is None else self.activation(out)


class Standardised(nn.Conv2d):
    def forward(self, inputs):
        weight = self.weight / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(inputs, weight, self.bias, self.stride, self.padding)


class ScaledBias(nn.Linear):
    """Looks at its weights besides calling the kernel."""

    def forward(self, inputs):
        return super().forward(inputs) + 0.1 * self.weight.mean()


class Conv1D(nn.Module):
    """What GPT-2 of transformers has for linear layers."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) / nx**0.5), nn.Parameter(torch.zeros(nf))

    def forward(self, inputs):
        rows = torch.addmm(self.bias, inputs.reshape(-1, inputs.shape[-1]), self.weight)
        return rows.view(*inputs.shape[:-1], self.nf)


class Frozen(nn.Module):
    """A norm of the user's own, whose numbers are buffers."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("scale", torch.linspace(0.5, 1.5, channels).view(-1, 1, 1))

    def forward(self, inputs):
        return inputs * self.scale


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.same = SameConv(3, 16, 3)
        self.normed = NormedConv(16, 16, 3, padding=1, bias=False, norm=nn.BatchNorm2d(16), activation=F.relu)
        self.frozen = NormedConv(16, 16, 1, norm=Frozen(16))
        self.bare = NormedConv(16, 24, 1)
        self.mixed = Conv1D(16, 24)
        self.head = nn.Linear(16, 5)

    def forward(self, inputs):
        out = F.relu(self.bare(self.frozen(self.normed(F.relu(self.same(inputs))))))
        return self.head(F.relu(self.mixed(out.mean((2, 3)))))


class Refused(nn.Module):
    def __init__(self):
        super().__init__()
        self.standard = Standardised(3, 8, 3)
        self.looking = ScaledBias(8, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, inputs):
        return self.head(F.relu(self.looking(F.relu(self.standard(inputs)).mean((2, 3)))))


@pytest.fixture(scope="module")
def bank():
    network = Network.of(build(Own), images(4), "own")
    return Bank(network, calibrate(network, labelled(images(), labels())))


def test_plain_layers_inside_of_a_users_own_are_layers(bank):
    network = bank.network
    assert [layer.name for layer in network.layers] == [
        "same.layer",
        "normed.layer",
        "frozen.layer",
        "bare",
        "mixed",
        "head",
    ]
    assert not network.skipped
    assert type(network.modules["normed.norm"]) is nn.Identity  # merged into the layer that it follows
    with torch.no_grad():
        assert torch.allclose(network.model(images()), network.original(images()), atol=1e-5)
    assert type(network.original.same) is SameConv
    assert {group.leader for group in network.groups} == {"same.layer", "normed.layer", "frozen.layer", "bare", "mixed"}


def test_statistics_are_those_of_what_the_inner_layer_sees(bank):
    network, seen = bank.network, []
    handle = network.modules["same.layer"].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        network.model(images())
    handle.remove()
    assert seen[0].shape[-1] == 10  # padded
    expected = F.unfold(seen[0], 3).transpose(1, 2).flatten(0, 1).mean(0)
    assert torch.allclose(bank.calibration.statistics["same.layer"].mean[0], expected, atol=0.05)


@pytest.mark.parametrize(
    "recipe",
    [
        "filter_pruning(ratio=0.5) + uniform_quantization(bits=4)",
        "low_rank(ratio=0.5) + uniform_quantization(bits=6) + activation_quantization",
    ],
)
def test_layers_of_a_users_own_are_compressed_packed_and_exported(recipe, bank, tmp_path):
    network = bank.network
    plan, refused = Scheme.of({"*": recipe}).on(network)
    assert set(refused) <= {"same.layer", "frozen.layer", "head"}
    model = bank.stitch(plan).model
    with torch.no_grad():
        expected = model(images())
    size = save_packed(model, network.original, tmp_path / "weights", {})
    whole = save_packed(network.original, network.original, tmp_path / "original", {})
    assert size < 0.65 * whole
    loaded = load_packed(tmp_path / "weights", network.original)
    assert loaded.same.stride == (1, 1)
    assert loaded.same.out_channels == (8 if "filter" in recipe else 16)
    with torch.no_grad():
        assert torch.equal(loaded(images()), expected)
    export_onnx(model, images(4), tmp_path / "model.onnx")
    found = run_session(open_session(tmp_path / "model.onnx"), images().numpy())
    assert np.abs(found - expected.numpy()).max() < 0.02 * float(expected.abs().max())


def test_what_is_not_the_same_stays_with_the_reason():
    network = Network.of(build(Refused), images(4), "refused")
    assert [layer.name for layer in network.layers] == ["head"]
    assert {name: reason.split()[0] for name, reason in network.skipped.items()} == {
        "standard": "Standardised",
        "looking": "ScaledBias",
    }
