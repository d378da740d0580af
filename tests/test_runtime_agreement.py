"""Torch and ONNX Runtime compute the same: number by number on integers, within a rounding step where floats mix in."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plywise.compressors.formats.weight_format import UniformFormat, set_weight_format
from plywise.compressors.modules.static_quantized import ActivationRange, StaticQuantized, join
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank.bank import Bank
from plywise.env.calibration.calibration import calibrate
from plywise.env.costs.device import Device
from plywise.env.network.network import Network
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.runtime import run_model
from plywise.env.task.samples import labelled
from plywise.experiments.commands.study import load_both, samples

LAYERS = {
    "conv": (lambda: nn.Conv2d(12, 16, 3, padding=1), (12, 9, 9)),
    "strided": (lambda: nn.Conv2d(12, 16, 3, stride=2, padding=1, bias=False), (12, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(16, 16, 3, groups=16), (16, 9, 9)),
    "grouped": (lambda: nn.Conv2d(16, 8, 3, groups=4, dilation=2), (16, 9, 9)),
    "signal": (lambda: nn.Conv1d(8, 16, 5), (8, 40)),
    "linear": (lambda: nn.Linear(64, 24), (64,)),
    "tokens": (lambda: nn.Linear(32, 24), (10, 32)),
}


def random(shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantised(layer, inputs, bits=7, relu=False, width=8):
    """Wraps a layer with weights of few bits and ranges that cut a little off."""
    layer.requires_grad_(False)
    weight = layer.weight.detach()
    scale = weight.flatten(1).abs().amax(1) / max(1.0, 2 ** (bits - 1) - 1)
    set_weight_format(layer, UniformFormat(bits, scale, torch.full_like(scale, 2 ** (bits - 1))), weight)
    with torch.no_grad():
        outputs = layer(inputs)
    before = ActivationRange.spanning(0.9 * float(inputs.min()), 0.9 * float(inputs.max()), width)
    low = 0.0 if relu else 0.9 * float(outputs.min())
    return StaticQuantized(layer, before, ActivationRange.spanning(low, 0.9 * float(outputs.max()), width))


def compared(model, inputs, folder):
    """Returns the outputs of torch and of the runtime."""
    export_onnx(nn.Sequential(model).eval(), inputs[:2], folder / "model.onnx")
    with torch.no_grad():
        return model(inputs), run_model(folder / "model.onnx", inputs)


@pytest.mark.parametrize("bits", [1, 3, 4, 7, 8])
@pytest.mark.parametrize("kind", LAYERS)
def test_an_integer_layer_is_the_same_number_by_number(kind, bits, tmp_path):
    torch.manual_seed(0)
    if bits > Device.here().integer_weight_bits:
        pytest.skip("sums of 16 bits overflow on this processor")
    make, shape = LAYERS[kind]
    inputs = random((64, *shape))
    here, there = compared(quantised(make(), inputs, bits), inputs, tmp_path)
    assert len(here.unique()) > 20
    assert torch.equal(here, there)


@pytest.mark.parametrize("width", [4, 8])
def test_a_chain_of_integer_layers_is_the_same_number_by_number(width, tmp_path):
    torch.manual_seed(0)
    inputs, parts = random((32, 3, 12, 12)), []
    values = inputs
    for shape in ((3, 16), (16, 16), (16, 24)):
        parts += [quantised(nn.Conv2d(*shape, 3), values, 4, relu=True, width=width), nn.ReLU()]
        if len(parts) > 2:
            join(parts[-4], parts[-2])
        with torch.no_grad():
            values = parts[-1](parts[-2](values))
    here, there = compared(nn.Sequential(*parts), inputs, tmp_path)
    assert torch.equal(here, there)


class Summed(nn.Module):
    """A residual block with a float layer in it."""

    def __init__(self, inputs):
        super().__init__()
        self.first = quantised(nn.Conv2d(3, 16, 3, padding=1), inputs, 4, relu=True)
        values = F.relu(self.first(inputs))
        self.second = quantised(nn.Conv2d(16, 16, 3, padding=1), values, 3)
        values = F.relu(self.second(values) + values)
        self.floats = nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)
        values = F.relu(self.floats(values))
        self.third = quantised(nn.Conv2d(16, 8, 3), values, 7)

    def forward(self, inputs):
        values = F.relu(self.first(inputs))
        values = F.relu(self.second(values) + values)
        return self.third(F.relu(self.floats(values)))


def test_sums_and_float_layers_in_between_turn_hardly_a_code(tmp_path):
    torch.manual_seed(0)
    inputs = random((32, 3, 12, 12))
    model = Summed(inputs).requires_grad_(False)
    here, there = compared(model, inputs, tmp_path)
    step = model.third.output_range.scale
    assert float((here - there).abs().max()) <= 1.001 * step
    # Sums of floats in another order lie on the other side of a border once in a hundred thousand.
    assert float((here != there).float().mean()) < 1e-3


class Pooled(nn.Module):
    """Two layers with a pooling in between, each with a range of its own."""

    def __init__(self, inputs):
        super().__init__()
        self.first = quantised(nn.Conv2d(3, 16, 3), inputs, 4, relu=True)
        values = F.max_pool2d(F.relu(self.first(inputs)), 2)
        self.second = quantised(nn.Conv2d(16, 8, 3), 1.07 * values, 4)

    def forward(self, inputs):
        return self.second(F.max_pool2d(F.relu(self.first(inputs)), 2))


@pytest.mark.parametrize("joined", [True, False])
def test_two_roundings_with_a_pooling_in_between(joined, tmp_path):
    torch.manual_seed(0)
    inputs = random((32, 3, 12, 12))
    model = Pooled(inputs).requires_grad_(False)
    if joined:
        join(model.first, model.second)
    here, there = compared(model, inputs, tmp_path)
    assert torch.equal(here, there)


def test_a_large_bias_over_tiny_weights_is_the_same(tmp_path):
    torch.manual_seed(0)
    inputs, layer = random((32, 16)), nn.Linear(16, 8)
    with torch.no_grad():
        layer.weight[0], layer.bias[0] = 1e-20, 9.0
        layer.weight[1], layer.bias[1] = 0.0, 0.0
    here, there = compared(quantised(layer, inputs).requires_grad_(False), inputs, tmp_path)
    assert torch.equal(here, there)


def test_layers_of_unlike_ranges_are_joined_to_one_rounding(tmp_path):
    """The runtime would make one rounding of both, with a range of its own."""
    torch.manual_seed(0)
    inputs = random((32, 3, 12, 12))
    first = quantised(nn.Conv2d(3, 16, 3), inputs, 4, relu=True)
    values = F.relu(first(inputs))
    second = quantised(nn.Conv2d(16, 8, 3), 1.07 * values, 4)
    assert first.output_range != second.input_range
    join(nn.Sequential(first), second)
    assert (second.input_range, second.rounds_inputs) == (first.output_range, False)
    here, there = compared(nn.Sequential(first, nn.ReLU(), second), inputs, tmp_path)
    assert torch.equal(here, there)


def test_a_range_of_other_bits_is_left_as_it_is(tmp_path):
    torch.manual_seed(0)
    inputs = random((32, 3, 12, 12))
    for widths in ((8, 4), (4, 8)):
        first = quantised(nn.Conv2d(3, 16, 3), inputs, 4, relu=True, width=widths[0])
        second = quantised(nn.Conv2d(16, 8, 3), F.relu(first(inputs)), 4, width=widths[1])
        before = second.input_range
        join(first, second)
        assert (second.input_range, second.rounds_inputs) == (before, True)
        here, there = compared(nn.Sequential(first, nn.ReLU(), second), inputs, tmp_path)
        assert torch.equal(here, there)


DATA = Path(os.environ.get("PLYWISE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))


@pytest.fixture(scope="module")
def resnet20():
    """The bank of the trained network, and test images of the dataset."""
    if not (DATA / "cifar10-jpeg.zip").is_file():
        pytest.skip("PLYWISE_DATA holds no cifar10-jpeg.zip")
    weights = DATA / "zoo" / "resnet20-cifar10.safetensors"
    model, dataset = load_both("zoo:resnet20", f"cifar10:{DATA / 'cifar10-jpeg.zip'}", weights)
    seen = samples(dataset.train, 256)
    network = Network.of(model, seen.inputs[:1])
    return Bank(network, calibrate(network, labelled(seen.inputs, seen.labels))), samples(dataset.test, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("floats", [False, True])
def test_resnet20_in_torch_and_in_the_runtime(floats, resnet20, tmp_path):
    """All numbers are the same where all layers run on integers, and hardly an image changes its class where not."""
    bank, test = resnet20
    recipes = [f"uniform_quantization(bits={bits})" for bits in (3, 7, 4, 6, 5)]
    plan = {
        layer.name: Recipe.parse(
            recipes[place % 5] + ("" if floats and place % 3 == 1 else " + activation_quantization")
        )
        for place, layer in enumerate(bank.network.layers)
    }
    model = bank.stitch(Plan(bank.network.name, plan)).model
    export_onnx(model, test.inputs[:2], tmp_path / "model.onnx")
    here, there = test.logits(model), run_model(tmp_path / "model.onnx", test.inputs)
    assert int((here.argmax(1) != there.argmax(1)).sum()) <= (2 if floats else 0)
    assert float((here - there).abs().mean()) <= (0.006 if floats else 0.0)
