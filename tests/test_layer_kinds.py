"""Transposed convolutions, embeddings and torch's attention: their closed fmts, and whole networks made of them."""

from functools import cache

import numpy as np
import pytest
import torch
from layer_kinds import KINDS, layer_of, prepared
from tiny_networks import build, images, labels
from torch import nn
from torch.nn import functional as F

from plywise.compressors.errors import ModelError
from plywise.compressors.modules.layers import TRANSPOSED, bias_of, native_weight, weight_matrices, weight_of
from plywise.compressors.modules.projected_attention import with_projections
from plywise.compressors.packing.packed_file import load_packed, save_packed
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe, make_technique
from plywise.compressors.statistics.leaves import effective_matrix
from plywise.env.bank.bank import Bank
from plywise.env.calibration.calibration import calibrate, patches
from plywise.env.costs.energy import energy_mj
from plywise.env.network.network import Network
from plywise.env.network.operation import operations
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.operation_graph import operation_graph
from plywise.env.runtime.runtime import open_session, random_inputs, run_model, run_session
from plywise.env.task.samples import labelled

UPSAMPLING = [kind for kind in KINDS if isinstance(layer_of(kind), TRANSPOSED)]


class Upscaler(nn.Module):
    """Every kind of transposed convolution, one of them behind a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 24, 4, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.each = nn.ConvTranspose2d(24, 24, 2, stride=2, groups=24)
        self.grouped = nn.ConvTranspose2d(24, 16, 3, groups=2, padding=1)
        self.signal = nn.ConvTranspose1d(16, 8, 3, dilation=2)
        self.head = nn.Linear(8, 5)

    def forward(self, inputs):
        out = F.relu(self.norm(self.up(F.relu(self.down(inputs)))))
        out = F.relu(self.grouped(F.relu(self.each(out))))
        return self.head(F.relu(self.signal(out.flatten(2)[:, :, ::4])).mean(2))


class Words(nn.Module):
    """A transformer encoder of torch's own layers over indices of words."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, indices):
        return self.head(self.encoder(self.words(indices)).mean(1))


def words(count=64):
    return torch.randint(50, (count, 7), generator=torch.Generator().manual_seed(1))


INPUTS = {Upscaler: images, Words: words}


@cache
def bank_of(kind):
    network = Network.of(build(kind), INPUTS[kind]()[:4], kind.__name__)
    return Bank(network, calibrate(network, labelled(INPUTS[kind](), labels())))


def planned(network, text):
    """Returns the plan of one recipe wherever it is allowed."""
    recipe, other = Recipe.parse(text), Recipe.parse("uniform_quantization(bits=5)")
    fits = {layer.name: network.unsupported(layer.name, recipe) is None for layer in network.layers}
    assert any(fits.values())
    return Plan(network.name, {name: recipe if fit else other for name, fit in fits.items()})


# Closed forms


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "embedding" and not kind.startswith("linear")])
def test_weights_times_patches_are_the_outputs(kind):
    layer, inputs, _ = prepared(kind)
    rows = patches(layer, inputs, 10**6, torch.Generator())
    outputs = torch.einsum("rgf,gof->rgo", rows, weight_matrices(layer)).flatten(1)
    bias = bias_of(layer)
    with torch.no_grad():
        expected = layer(inputs).movedim(1, -1).flatten(0, -2)
    assert torch.allclose(outputs if bias is None else outputs + bias, expected, atol=1e-5)


@pytest.mark.parametrize("kind", UPSAMPLING)
def test_views_of_transposed_weights_are_inverse(kind):
    layer = layer_of(kind)
    assert weight_of(layer).shape[0] == layer.out_channels
    assert torch.equal(native_weight(layer, weight_of(layer)), layer.weight)


@pytest.mark.parametrize("kind", [kind for kind in UPSAMPLING if "depthwise" not in kind])
def test_error_feedback_lowers_the_real_error_of_transposed_convolutions(kind):
    layer, inputs, statistics = prepared(kind)
    errors = []
    for rounding in ("gptq", "nearest"):
        technique = make_technique("uniform_quantization", {"bits": 3, "rounding": rounding})
        with torch.no_grad():
            errors.append(float((technique.compress(layer, statistics)(inputs) - layer(inputs)).square().sum()))
    assert errors[0] < errors[1]


def test_rows_that_are_read_often_lose_fewer_weights():
    layer, inputs, statistics = prepared("embedding")
    assert float(statistics.frequency.mean()) == pytest.approx(1.0)
    assert int(statistics.frequency.argmax()) == int(inputs.flatten().bincount().argmax())
    module = make_technique("magnitude_pruning", {}).compress(layer, statistics)
    kept = (weight_of(module) != 0).float().mean(1)
    assert float(kept[statistics.frequency.argmax()]) > float(kept.mean())


def test_a_factored_table_loses_least_on_the_words_that_occur():
    layer, inputs, statistics = prepared("embedding")
    technique = make_technique("low_rank", {"ratio": 0.6})
    (rank,) = technique.ranks(layer)
    module = technique.compress(layer, statistics)
    with torch.no_grad():
        expected, found = layer(inputs), module(inputs)
        assert torch.allclose(effective_matrix(module)[0][inputs], found, atol=1e-5)
        weight = layer.weight - layer.weight.mean(0)
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        plain = (left[:, :rank] * values[:rank] @ right[:rank] + layer.weight.mean(0))[inputs]
    assert (found - expected).square().sum() < (plain - expected).square().sum()


# Attention


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"kdim": 10, "vdim": 12}], ids=str)
def test_attention_of_projections_is_that_of_torch(batch_first, settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attention = nn.MultiheadAttention(16, 4, batch_first=batch_first, **settings).eval()
        for parameter in attention.parameters():
            nn.init.normal_(parameter, std=0.3)
        sizes = (5, 16), (7, settings.get("kdim", 16)), (7, settings.get("vdim", 16))
        tokens = [torch.randn(3, *size) for size in sizes]
        mask = torch.rand(12, 5, 7) < 0.3
    mask[..., 0] = False  # a row that sees nothing is no number in torch either
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 4:] = True
    tokens = tokens if batch_first else [token.transpose(0, 1) for token in tokens]
    projected = with_projections(attention)
    for options in (
        {},
        {"need_weights": False},
        {"key_padding_mask": padding},
        {"attn_mask": mask, "average_attn_weights": False},
        {"attn_mask": torch.zeros(5, 7).masked_fill(mask[0], -1.0)},
        {"attn_mask": mask[0], "key_padding_mask": padding},
    ):
        with torch.no_grad():
            expected, found = attention(*tokens, **options), projected(*tokens, **options)
        assert torch.allclose(found[0], expected[0], atol=1e-5)
        assert (found[1] is None) == (expected[1] is None)
        assert found[1] is None or torch.allclose(found[1], expected[1], atol=1e-5)


def test_projections_of_torch_attention_become_layers_and_the_original_stays():
    model = build(Words)
    before = model.state_dict()
    network = Network.of(model, words(4))
    names = {layer.name for layer in network.layers}
    projections = ("query", "key", "value", "out_proj")
    assert {f"encoder.layers.{n}.self_attn.{part}" for n in (0,) for part in projections} <= names
    assert not network.skipped or all("self_attn" not in name for name in network.skipped)
    assert type(model.encoder.layers[0].self_attn) is nn.MultiheadAttention
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():  # torch takes its fast path here
        assert torch.allclose(network.model(words()), model(words()), atol=1e-5)


class Attending(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True, **settings)
        self.head = nn.Linear(24, 5)

    def forward(self, inputs):
        tokens = inputs.transpose(1, 2).flatten(2)
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


def test_attention_that_cannot_be_taken_apart_says_why():
    network = Network.of(build(Attending, add_bias_kv=True), images(4))
    assert [layer.name for layer in network.layers] == ["head"]
    assert "add_bias_kv" in network.skipped["attention"]


class Masked(Words):
    """Averages over padding as well, for which torch gives zeros on its fast path only."""

    def forward(self, indices):
        padding = torch.arange(7) >= 3 + (indices[:, :1] % 4)
        return self.head(self.encoder(self.words(indices), src_key_padding_mask=padding).mean(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_outputs_that_depend_on_the_fast_path_are_refused():
    with pytest.raises(ModelError, match="enable_nested_tensor=False"):
        Network.of(build(Masked), words(4))


# Whole networks

PLANS = (
    "uniform_quantization(bits=4)",
    "magnitude_pruning + codebook(bits=3)",
    "low_rank(ratio=0.6) + uniform_quantization(bits=4)",
    "filter_pruning(ratio=0.5) + uniform_quantization(bits=6, scheme=affine, granularity=group)",
)


@pytest.mark.parametrize(
    ("kind", "text"), [*((Upscaler, text) for text in PLANS), *((Words, text) for text in PLANS[1:])]
)
def test_compressed_networks_pack_load_and_run(kind, text, tmp_path):
    bank, inputs = bank_of(kind), INPUTS[kind]()
    model = bank.stitch(planned(bank.network, text)).model
    save_packed(model, bank.network.original, tmp_path / "weights", {})
    loaded = load_packed(tmp_path / "weights", build(kind, seed=5))
    with torch.no_grad():
        expected = model(inputs)
        assert torch.equal(loaded(inputs), expected)
    export_onnx(model, inputs, tmp_path / "model.onnx")
    assert torch.allclose(run_model(tmp_path / "model.onnx", inputs), expected, atol=1e-4)


def test_networks_of_fewer_heads_pack_load_and_run(tmp_path):
    bank = bank_of(Words)
    recipes = {layer.name: Recipe() for layer in bank.network.layers}
    recipes["encoder.layers.0.self_attn.query"] = Recipe.parse("filter_pruning(ratio=0.5)")
    model = bank.stitch(Plan("Words", recipes)).model
    save_packed(bank.network.model, bank.network.original, tmp_path / "whole", {})
    save_packed(model, bank.network.original, tmp_path / "weights", {})
    assert (tmp_path / "weights").stat().st_size < (tmp_path / "whole").stat().st_size - 4 * 8 * 16 * 3
    loaded = load_packed(tmp_path / "weights", build(Words, seed=5))
    assert loaded.encoder.layers[0].self_attn.key.weight.shape == (8, 16)
    with torch.no_grad():
        expected = model(words())
        assert torch.equal(loaded(words()), expected)
    export_onnx(model, words(), tmp_path / "model.onnx")
    assert torch.allclose(run_model(tmp_path / "model.onnx", words()), expected, atol=1e-4)


def test_channels_of_transposed_convolutions_are_cut_with_what_reads_them():
    network = bank_of(Upscaler).network
    assert {layer.name for layer in network.layers if layer.leads} >= {"down", "signal"}
    assert network.skipped == {}
    assert isinstance(network.modules["norm"], nn.Identity)


def test_embeddings_that_scale_their_vectors_are_skipped():
    model = build(Words)
    model.words.max_norm = 1.0
    assert "max_norm" in Network.of(model, words(4)).skipped["words"]


# Prices


@pytest.mark.parametrize("kind", [*UPSAMPLING, "embedding"])
def test_operations_have_the_shapes_and_macs_of_the_layer(kind):
    layer, inputs, _ = prepared(kind)
    chain = operations(layer, inputs.shape[1:])
    with torch.no_grad():
        outputs = layer(inputs[:1])
    assert chain[0].output_shape == outputs.shape[1:]
    assert chain[0].weight_shape == weight_of(layer).shape
    session = open_session(operation_graph(chain))
    assert run_session(session, random_inputs(session, (1, *inputs.shape[1:]))).shape == outputs.shape
    ones = type(layer)(12, 16, 3, stride=2) if isinstance(layer, TRANSPOSED) else None
    if ones is not None:  # without borders, every multiply-add is counted by weights and inputs of one
        nn.init.ones_(ones.weight)
        nn.init.zeros_(ones.bias)
        (whole,) = operations(ones, inputs.shape[1:])
        assert whole.macs == int(ones(torch.ones_like(inputs[:1])).double().sum())


def test_an_embedding_costs_the_energy_of_the_rows_that_it_reads():
    few, many = (energy_mj(operations(nn.Embedding(1000, 16), (count,))) for count in (1, 10))
    assert many == pytest.approx(10 * few)
    assert np.isfinite(few)
