import collections
import copy
import os
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plywise.compressors.errors import ModelError
from plywise.compressors.formats import weight_format
from plywise.compressors.formats.weight_format import UniformFormat, WeightFormat, set_weight_format
from plywise.compressors.modules.static_quantized import ActivationRange, StaticQuantized
from plywise.env.network.operation import operations
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.operation_graph import operation_graph
from plywise.env.runtime.runtime import run_model, time_models

IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Everything(nn.Module):
    """Convolutions before a ReLU and a ReLU6, a depthwise one, low-rank chains, an addition, tokens and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.third = nn.Sequential(nn.Conv2d(16, 4, 1, bias=False), nn.Conv2d(4, 16, 3, padding=1))
        self.up = nn.Linear(16, 24)
        self.down = nn.Sequential(nn.Linear(24, 4, bias=False), nn.Linear(4, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        values = F.relu(self.norm(self.first(images)))
        values = F.relu6(self.second(values))
        values = values + F.relu(self.third(values))
        tokens = values.flatten(2).transpose(1, 2)  # (batch, 64, 16)
        tokens = tokens + self.down(F.gelu(self.up(tokens)))
        return self.head(tokens.mean(1))


class Signs(WeightFormat):
    """Two values for each channel: an alphabet that is no uniform one."""

    name = "test_signs"
    bits = 1

    def encode(self, weight):
        return (weight > 0).long()

    def decode(self, symbols):
        scale = torch.arange(1.0, 1 + len(symbols)).view(-1, *(1,) * (symbols.dim() - 1))
        return (2.0 * symbols - 1.0) * scale / len(symbols)

    def scaled(self, factor):
        raise NotImplementedError

    def settings(self):
        return {}

    def tensors(self):
        return {}

    @classmethod
    def restore(cls, settings, tensors):
        return cls()


del weight_format.FORMATS["test_signs"]


def network() -> nn.Module:
    torch.manual_seed(0)
    model = Everything().eval().requires_grad_(False)
    model.norm.running_mean.uniform_(-0.5, 0.5)
    model.norm.running_var.uniform_(0.5, 1.5)
    return model


def folded() -> nn.Module:
    model = network()
    model.first = nn.utils.fusion.fuse_conv_bn_eval(model.first, model.norm).requires_grad_(False)
    model.norm = nn.Identity()
    return model


def leaves(model: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}


def quantise(leaf: nn.Module, bits: int, offset: int = 0) -> None:
    weight = leaf.weight.detach()
    scale = weight.flatten(1).abs().amax(1) / 2 ** (bits - 1)
    set_weight_format(leaf, UniformFormat(bits, scale, torch.full_like(scale, 2 ** (bits - 1) - offset)), weight)


def with_integers(model: nn.Module, stretch: float = 1.0) -> nn.Module:
    """Wraps every leaf, with ranges from IMAGES; `stretch` makes neighbours' ranges differ."""
    for name, leaf in leaves(model).items():
        quantise(leaf, 6, offset=9) if name == "up" else quantise(leaf, 7)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        leaf.register_forward_hook(lambda _, given, result, name=name: seen.__setitem__(name, (given[0], result)))
        for name, leaf in leaves(model).items()
    ]
    model(IMAGES)
    for hook in hooks:
        hook.remove()
    for name, (given, result) in seen.items():
        low = 0.0 if name in ("first", "second", "third.1") else float(result.min())
        high = min(float(result.max()), 6.0 if name == "second" else 1e9) * stretch
        before = ActivationRange.spanning(float(given.min()), float(given.max()))
        wrapped = StaticQuantized(model.get_submodule(name), before, ActivationRange.spanning(low, high))
        model.set_submodule(name, wrapped)
    return model


def kinds(model: Path | bytes, folder: Path) -> collections.Counter[str]:
    """Counts the operators that the runtime executes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    source = str(model) if isinstance(model, Path) else model
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    return collections.Counter(node.op_type for node in graph.node)


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IMAGES)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "model.onnx"
    export_onnx(network(), IMAGES[:1], path)
    return path


def test_a_float_network_gives_the_same_output(plain: Path) -> None:
    torch.testing.assert_close(run_model(plain, IMAGES, batch=10), outputs(network()), rtol=1e-4, atol=1e-5)
    assert os.listdir(plain.parent) == ["model.onnx"]
    graph = onnx.load(plain).graph
    assert ([value.name for value in graph.input], [value.name for value in graph.output]) == (["input"], ["output"])


def test_stored_weights_are_small_and_plain_again_once_loaded(tmp_path: Path, plain: Path, capfd) -> None:
    model = network()
    recipes: dict[str, Callable[[nn.Module], None]] = {
        "first": lambda leaf: quantise(leaf, 4),
        "second": lambda leaf: quantise(leaf, 7, offset=1),
        "third.0": lambda leaf: quantise(leaf, 2),
        "third.1": lambda leaf: set_weight_format(leaf, Signs(), leaf.weight),
        "up": lambda leaf: quantise(leaf, 3),
        "down.1": lambda leaf: quantise(leaf, 8),
    }
    for name, recipe in recipes.items():
        recipe(model.get_submodule(name))
    state = copy.deepcopy(model.state_dict())
    export_onnx(model, IMAGES, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    torch.testing.assert_close(run_model(tmp_path / "model.onnx", IMAGES), outputs(model), rtol=1e-4, atol=1e-5)
    stored = [t for t in onnx.load(tmp_path / "model.onnx").graph.initializer if t.data_type in (2, 21)]
    size = {name: model.get_submodule(name).weight.numel() for name in recipes}
    packed = [size[name] // 2 for name in ("first", "third.0", "third.1", "up")]
    assert sorted(len(t.raw_data) for t in stored) == sorted([*packed, size["second"], size["down.1"]])
    # Nothing is left of the decoding: the runtime executes what it executes for the original.
    assert kinds(tmp_path / "model.onnx", tmp_path) == kinds(plain, tmp_path)


@pytest.mark.parametrize("stretch", [1.0, 0.97])
def test_integer_layers_run_on_integer_kernels(stretch: float, tmp_path: Path) -> None:
    model = folded()
    if stretch != 1.0:
        # A channel without weights has a tiny scale, in which its bias would not fit 32 bits.
        model.head.weight[0], model.head.bias[0] = 1e-20, 9.0
    model = with_integers(model, stretch)
    export_onnx(model, IMAGES, tmp_path / "model.onnx")
    difference = (run_model(tmp_path / "model.onnx", IMAGES) - outputs(model)).abs()
    # Ties round differently, and neighbouring roundings merge: some codes move by one.
    assert float(difference.max()) <= 3.5 * model.head.output_range.scale
    count = kinds(tmp_path / "model.onnx", tmp_path)
    assert (count["QLinearConv"], count["QGemm"]) == (4, 4)
    assert count.keys().isdisjoint({"Conv", "Gemm", "MatMul", "Relu", "Clip"})


def test_a_rounded_chain_without_ranges_inside_runs_on_floats(tmp_path: Path) -> None:
    model, span = folded(), ActivationRange.spanning(-2.0, 2.0)
    quantise(model.third[0], 7)
    model.third = StaticQuantized(model.third, span, span)
    export_onnx(model, IMAGES, tmp_path / "model.onnx")
    difference = (run_model(tmp_path / "model.onnx", IMAGES) - outputs(model)).abs()
    # Sums in another order may round to the neighbouring code.
    assert float(difference.max()) <= span.scale
    assert float(difference.median()) < 1e-5
    assert kinds(tmp_path / "model.onnx", tmp_path)["Conv"] == 4


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(16, 16, 3, padding=1), (16, 8, 8), "QLinearConv"),
        (nn.Conv1d(16, 16, 3, groups=16), (16, 9), "QLinearConv"),
        (nn.Linear(16, 8), (16,), "QGemm"),
        (nn.Linear(16, 8, bias=False), (4, 16), "QGemm"),
        (nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 16)), (4, 16), "QGemm"),
    ],
)
def test_what_is_priced_runs_on_the_kernels_of_the_export(layer, shape, expected, tmp_path: Path) -> None:
    chain = operations(layer, shape, integer=True)
    count = kinds(operation_graph(chain), tmp_path)
    assert (count[expected], count["QuantizeLinear"], count["DequantizeLinear"]) == (len(chain), 1, 1)


def test_outputs_do_not_depend_on_the_batch(plain: Path) -> None:
    torch.testing.assert_close(run_model(plain, IMAGES, batch=7), run_model(plain, IMAGES), rtol=1e-5, atol=1e-6)


def test_timing_of_files(plain: Path) -> None:
    timings = time_models([plain, plain], (1, 3, 8, 8), repeats=5)
    assert [0 < t.low_ms <= t.median_ms <= t.high_ms for t in timings] == [True, True]


def test_a_network_that_cannot_be_traced_is_an_error(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images if images.sum() > 0 else -images

    with pytest.raises(ModelError, match="cannot be exported"):
        export_onnx(Broken(), IMAGES, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"model\.onnx"):
        time_models([tmp_path / "model.onnx"], (1, 3, 8, 8))


class FixesBatch(nn.Module):
    """Turns the batch into a plain number, as many networks do by accident."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 1, 4))
        self.linear = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(inputs), -1, -1), inputs], 1)
        return self.linear(tokens.mean(1))


def test_a_forward_that_fixes_the_batch_is_exported_for_one_image(tmp_path: Path) -> None:
    model, images = FixesBatch().eval(), torch.randn(5, 2, 4)
    export_onnx(model, images, tmp_path / "model.onnx")
    with torch.no_grad():
        assert torch.allclose(run_model(tmp_path / "model.onnx", images), model(images), atol=1e-5)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Identity])
def test_the_runtime_does_not_round_float_layers_between_integer_ones(activation, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [("first", nn.Conv2d(3, 16, 3)), ("middle", nn.Conv2d(16, 16, 3)), ("last", nn.Conv2d(16, 4, 3))]
    named = [pair for name, layer in layers for pair in ((name, layer), (f"{name}_ends", activation()))]
    model = nn.Sequential(collections.OrderedDict([*named, ("flat", nn.Flatten())])).eval().requires_grad_(False)
    model.first.weight[0], model.first.bias[0] = 0.0, 0.0
    model.middle.weight[:, 0] = 1000.0  # does nothing, but one scale for the layer would leave nothing of the others
    exact = model.middle
    model = with_integers(model)
    model.middle = exact
    expected = outputs(model)
    export_onnx(model, IMAGES[:2], tmp_path / "mixed.onnx")
    found = run_model(tmp_path / "mixed.onnx", IMAGES)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.03 * float(expected.abs().max()))
