"""What each weight format promises: exact symbols, safe restoring, errors that fall where they must, small files."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from layer_kinds import layer_of, prepared
from torch import nn

from plywise.compressors.errors import ConfigurationError, FileFormatError, ModelError
from plywise.compressors.formats.codebook_format import CodebookFormat
from plywise.compressors.formats.grouped_format import GroupedFormat
from plywise.compressors.formats.logarithmic_format import LogarithmicFormat
from plywise.compressors.formats.minifloat_format import MinifloatFormat
from plywise.compressors.formats.recentralized_format import RecentralizedFormat
from plywise.compressors.formats.scale_search import power_of_two_above
from plywise.compressors.formats.weight_format import UniformFormat, set_weight_format, weight_format, weight_formats
from plywise.compressors.modules.layers import set_weight, weight_matrices, weight_of
from plywise.compressors.modules.static_quantized import ActivationRange, StaticQuantized
from plywise.compressors.packing.packed_file import load_packed, save_packed
from plywise.compressors.packing.packed_module import packed_size
from plywise.compressors.packing.packing import pack_symbols, symbols_size, unpack_symbols
from plywise.compressors.quantization.codebook import clustered
from plywise.compressors.quantization.recentralized import two_normals
from plywise.compressors.quantization.weight_rounding import importance_of
from plywise.compressors.recipes.technique import Recipe, Stage, make_technique, techniques
from plywise.compressors.statistics.error_feedback import damped, relative_output_error
from plywise.compressors.statistics.leaves import effective_matrix
from plywise.compressors.statistics.statistics import LayerStatistics
from plywise.env.bank.repair import _apply
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.runtime import run_model

KINDS = ("conv1d", "conv2d-stride", "grouped", "depthwise", "linear")
ROUNDINGS = ("nearest", "gptq")

SCALE = torch.tensor([0.5, 1.0, 3.0e-3, 0.0])
FORMS = [
    UniformFormat(4, torch.tensor([0.25]), torch.tensor([8.0])),
    GroupedFormat(3, torch.rand(4, 3, generator=torch.Generator().manual_seed(0)) + 0.1, torch.full((4, 3), 4.0), 4),
    CodebookFormat(SCALE, 3, torch.tensor([-1.5, -0.5, 0.0, 0.25, 0.75, 2.0])),
    LogarithmicFormat(SCALE, 5, 2),
    LogarithmicFormat(SCALE, 8, 1),
    MinifloatFormat(SCALE, 4, 3),
    MinifloatFormat(torch.tensor([0.125]), 5, 10),
    MinifloatFormat(SCALE, 8, 7),
    RecentralizedFormat(SCALE, 5, torch.tensor([-0.8, 0.9]), torch.tensor([0.5, 0.6])),
]


def error_of(recipe, kind):
    layer, _, statistics = prepared(kind)
    after = effective_matrix(Recipe.parse(recipe).compress(layer, statistics))
    return relative_output_error(weight_matrices(layer), after, statistics.covariance)


def weighted_error_of(recipe, kind):
    """Returns the squared error of the weights, each counted by the variance of its input."""
    layer, _, statistics = prepared(kind)
    after = weight_of(Recipe.parse(recipe).compress(layer, statistics))
    difference = (weight_of(layer) - after).flatten(1)
    return float((difference.square() * importance_of(layer, statistics)).sum())


# Formats


@pytest.mark.parametrize("fmt", FORMS, ids=repr)
def test_symbols_come_back_from_values_and_scaled_values(fmt):
    size = 12 if isinstance(fmt, GroupedFormat) else 4096
    symbols = torch.randint(0, 2**fmt.bits, (4, size), generator=torch.Generator().manual_seed(1))
    if hasattr(fmt, "levels"):
        symbols = symbols % len(fmt.levels)
    values = fmt.decode(symbols)
    assert torch.equal(fmt.decode(fmt.encode(values)), values)
    assert torch.equal(fmt.encode(values)[:3], symbols[:3]), "a channel of scale zero has lost its symbols"
    for factor in (torch.tensor([0.3, 1.7, 1.0, 2.0]), torch.full((4,), 1e-30), torch.full((4,), 1e30)):
        scaled = fmt.scaled(factor)
        values = scaled.decode(symbols)
        assert torch.equal(scaled.decode(scaled.encode(values)), values)
        expected = fmt.decode(symbols) * factor[:, None]
        normal = (expected.abs() > 1e-34) & (fmt.decode(symbols).abs() > 1e-34)
        torch.testing.assert_close(values[normal], expected[normal], rtol=1e-6, atol=0)


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMS if fmt.bits <= 8], ids=repr)
def test_rounding_finds_the_nearest_value(fmt):
    weights = torch.randn(4, 12, generator=torch.Generator().manual_seed(2))
    table = torch.stack([fmt.decode(torch.full((4, 12), symbol)) for symbol in range(min(2**fmt.bits, count(fmt)))])
    best = (table - weights).abs().amin(0)
    torch.testing.assert_close((fmt.decode(fmt.encode(weights)) - weights).abs(), best, rtol=1e-5, atol=1e-7)


def count(fmt):
    return len(fmt.levels) if hasattr(fmt, "levels") else 2**fmt.bits


@pytest.mark.parametrize("fmt", FORMS, ids=repr)
def test_settings_and_tensors_restore_a_format(fmt):
    restored = weight_formats()[fmt.name].restore(dict(fmt.settings()), dict(fmt.tensors()))
    symbols = torch.randint(0, count(fmt), (4, 12), generator=torch.Generator().manual_seed(3))
    assert type(restored) is type(fmt)
    assert restored.bits == fmt.bits
    assert torch.equal(restored.decode(symbols), fmt.decode(symbols))


@pytest.mark.parametrize("fmt", FORMS, ids=repr)
@pytest.mark.parametrize("value", [-0.5, -1e-30, 0.0])
def test_scales_that_make_no_grid_are_refused(fmt, value):
    """Formats that divide by their scales have none of 0; levels times 0 make a channel of zeros."""
    tensors = {name: tensor.clone() for name, tensor in fmt.tensors().items()}
    tensors["scale"].view(-1)[0] = value
    if value == 0.0 and hasattr(fmt, "levels"):
        assert weight_formats()[fmt.name].restore(fmt.settings(), tensors).scale[0] == 0.0
        return
    with pytest.raises(FileFormatError, match=r"scale .*; it must be .* 0: the file is damaged"):
        weight_formats()[fmt.name].restore(fmt.settings(), tensors)


@pytest.mark.parametrize(
    ("dtype", "exponent", "mantissa"),
    [(torch.float16, 5, 10), (torch.bfloat16, 8, 7), (torch.float8_e5m2, 5, 2), (torch.float8_e4m3fn, 4, 3)],
)
def test_minifloats_are_the_standard_ones(dtype, exponent, mantissa):
    fmt = MinifloatFormat(torch.ones(1), exponent, mantissa)
    storage = torch.int16 if fmt.bits == 16 else torch.uint8
    low = -(2**15) if fmt.bits == 16 else 0
    standard = torch.arange(low, low + 2**fmt.bits, dtype=torch.int64).to(storage).view(dtype).float()
    standard = standard[standard.isfinite()].unique()
    levels = fmt.levels[fmt.levels.abs() < 480] if exponent == 4 else fmt.levels
    assert torch.equal(levels, standard)


@pytest.mark.parametrize(
    ("name", "settings", "tensors"),
    [
        ("codebook", {"width": 9}, {"scale": torch.ones(4), "entries": torch.arange(3.0)}),
        ("codebook", {"width": True}, {"scale": torch.ones(4), "entries": torch.arange(2.0)}),
        ("codebook", {"width": 1}, {"scale": torch.ones(4), "entries": torch.arange(3.0)}),
        ("codebook", {"width": 2}, {"scale": torch.ones(4), "entries": torch.tensor([1.0, 0.0])}),
        ("codebook", {"width": 2}, {"scale": torch.ones(4)}),
        ("codebook", {"width": 2}, {"scale": torch.ones(2, 2), "entries": torch.arange(3.0)}),
        ("codebook", {"width": 2}, {"scale": torch.ones(0), "entries": torch.arange(3.0)}),
        ("logarithmic", {"width": 1, "steps": 1}, {"scale": torch.ones(4)}),
        ("logarithmic", {"width": 4, "steps": 3}, {"scale": torch.ones(4)}),
        ("logarithmic", {"width": 4}, {"scale": torch.ones(4)}),
        ("minifloat", {"exponent": 8, "mantissa": 8}, {"scale": torch.ones(4)}),
        ("minifloat", {"exponent": 9, "mantissa": 1}, {"scale": torch.ones(4)}),
        ("minifloat", {"exponent": 5.0, "mantissa": 1}, {"scale": torch.ones(4)}),
        ("recentralized", {"width": 4}, {"scale": torch.ones(4), "centres": torch.ones(3), "spreads": torch.ones(3)}),
        ("recentralized", {"width": 2}, {"scale": torch.ones(4), "centres": torch.ones(2), "spreads": torch.ones(2)}),
        (
            "recentralized",
            {"width": 4},
            {"scale": torch.ones(4), "centres": torch.full((2,), 1e9), "spreads": torch.ones(2)},
        ),
        ("grouped", {"width": 4, "size": 0}, {"scale": torch.ones(4, 2)}),
        ("grouped", {"width": 4, "size": 4}, {"scale": torch.ones(4)}),
        ("grouped", {"width": 4, "size": 4}, {"scale": torch.ones(4, 2), "zero_point": torch.ones(4, 3)}),
    ],
)
def test_formats_out_of_range_are_refused(name, settings, tensors):
    with pytest.raises(FileFormatError):
        weight_formats()[name].restore(settings, tensors)


# Files


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_wide_symbols_round_trip_and_never_exceed_plain_packing(bits):
    symbols = torch.randint(0, 2**bits, (50, 7), generator=torch.Generator().manual_seed(4))
    data = pack_symbols(symbols, bits)
    assert torch.equal(unpack_symbols(data, (50, 7), bits), symbols)
    assert len(data) <= 350 * bits / 8 + 6
    assert abs(symbols_size(symbols, bits) - len(data)) <= 8
    for damaged in (data[:-1], data[: len(data) // 2], b"", b"\xff" * 20):
        with pytest.raises(FileFormatError):
            unpack_symbols(damaged, (50, 7), bits)


@pytest.mark.parametrize(
    "recipe",
    [
        "uniform_quantization(bits=4)",
        "uniform_quantization(bits=3, granularity=tensor)",
        "codebook(bits=4)",
        "power_of_two(bits=4)",
        "logarithmic(bits=5)",
        "ternary",
        "binary",
        "recentralized(bits=4)",
        "minifloat(exponent=4, mantissa=3)",
        "minifloat(exponent=2, mantissa=1)",
        "dynamic_fixed_point(width=6)",
    ],
)
def test_packed_size_is_close_to_the_entropy(recipe):
    layer = nn.Conv2d(32, 64, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(5)))
    statistics = type(prepared("conv2d")[2]).white(layer)
    module = Recipe.parse(recipe).compress(layer, statistics)
    fmt = weight_format(module)
    share = np.bincount(fmt.encode(weight_of(module)).flatten().numpy()) / layer.weight.numel()
    share = share[share > 0]
    entropy = -(share * np.log2(share)).sum() * layer.weight.numel() / 8
    alongside = 4 * (64 + sum(tensor.numel() for tensor in fmt.tensors().values()))
    assert packed_size(module) <= 1.03 * entropy + alongside + 150


def test_halves_take_two_bytes_at_most(tmp_path):
    layer, _, statistics = prepared("conv2d")
    for recipe in ("minifloat", "minifloat(exponent=8, mantissa=7)"):
        model = nn.Sequential(Recipe.parse(recipe).compress(layer, statistics)).eval()
        assert packed_size(model) <= 2 * layer.weight.numel() + 4 * 16 + 40
        save_packed(model, nn.Sequential(layer), tmp_path / "weights", {})
        loaded = load_packed(tmp_path / "weights", nn.Sequential(layer_of("conv2d", seed=9)))
        assert torch.equal(loaded[0].weight, model[0].weight)


@pytest.mark.parametrize("fmt", FORMS, ids=repr)
def test_scaled_layers_keep_their_format_in_the_file(fmt, tmp_path):
    layer = nn.Linear(12, 4).requires_grad_(False)
    original = nn.Sequential(nn.Linear(12, 4))
    set_weight_format(layer, fmt, layer.weight)
    _apply(layer, torch.tensor([0.3, 1.7, 1.0, 2.0]), torch.zeros(4))
    save_packed(nn.Sequential(layer), original, tmp_path / "weights", {})
    assert torch.equal(load_packed(tmp_path / "weights", original)[0].weight, layer.weight)


def test_narrow_activations_round_trip_and_damaged_ones_are_refused(tmp_path):
    layer, _, statistics = prepared("conv2d")
    module = Recipe.parse("activation_quantization(width=4)").at(3).compress(layer, statistics)
    model = nn.Sequential(module).eval()
    save_packed(model, nn.Sequential(layer), tmp_path / "weights", {})
    loaded = load_packed(tmp_path / "weights", nn.Sequential(layer))
    assert loaded[0].input_range == module.input_range
    assert loaded[0].input_range.bits == 4
    wrong = StaticQuantized(layer, ActivationRange(0.1, 16, 4), ActivationRange(0.1, 0))
    with pytest.raises(ModelError, match="zero point"):
        save_packed(nn.Sequential(wrong), nn.Sequential(layer), tmp_path / "wrong", {})


# What is promised of errors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(
    "recipes",
    [
        [f"codebook(bits={bits}" for bits in (2, 3, 4, 6, 8)],
        [f"recentralized(bits={bits}" for bits in (3, 4, 5)],
        [f"dynamic_fixed_point(width={bits}" for bits in (3, 4, 6, 8)],
        [f"fixed_point(point=0, width={bits}" for bits in (3, 4, 6, 8)],
        [f"minifloat(exponent=4, mantissa={bits}" for bits in (1, 2, 3, 5, 10)],
        ["binary(", "ternary("],
        [f"uniform_quantization(granularity=group, bits={bits}" for bits in (2, 3, 4, 8)],
    ],
    ids=lambda recipes: recipes[0].split("(")[0],
)
def test_more_bits_never_lose_more(recipes, rounding, kind):
    errors = [error_of(f"{recipe}, rounding={rounding})".replace("(, ", "("), kind) for recipe in recipes]
    assert errors == sorted(errors, reverse=True)


def fewest_bits():
    """Every quantiser of weights with as few bits as it allows, by name."""
    for name, kind in techniques().items():
        if kind.stage is Stage.WEIGHTS:
            lows = {field.name: field.metadata.get("low") for field in dataclasses.fields(kind)}
            yield make_technique(name, {key: lows[key] for key in ("bits", "width") if lows.get(key)})


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("technique", list(fewest_bits()), ids=str)
def test_weights_of_one_sign_do_not_vanish_in_the_fewest_bits(technique, sign):
    layer = nn.Linear(32, 8)
    nn.init.uniform_(layer.weight, 0.5, 1.0)
    set_weight(layer, sign * layer.weight.detach())
    after = weight_of(technique.compress(layer, LayerStatistics.white(layer)))
    assert bool((after * sign > 0).any(1).all()), "an output channel has lost all its weights"


@pytest.mark.parametrize("name", ["uniform_quantization", "codebook"])
def test_one_bit_is_refused_with_what_to_take_instead(name):
    with pytest.raises(ConfigurationError, match=r"bits=1 must lie between 2 and 8; of two values, .* take 'binary'"):
        make_technique(name, {"bits": 1})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_codebook_never_loses_more_than_a_uniform_grid(bits, kind):
    shared = weighted_error_of(f"codebook(bits={bits}, rounding=nearest)", kind)
    assert shared <= weighted_error_of(f"uniform_quantization(bits={bits}, rounding=nearest)", kind) * (1 + 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("more", ["", ", scheme=affine", ", granularity=tensor", ", granularity=group, group_size=5"])
def test_adaptive_rounding_never_loses_more_than_error_feedback(bits, kind, more):
    layer, _, statistics = prepared(kind)
    errors = []
    for rounding in ("adaptive", "gptq"):
        recipe = f"uniform_quantization(bits={bits}, rounding={rounding}{more})"
        after = effective_matrix(Recipe.parse(recipe).compress(layer, statistics))
        metric = damped(statistics.covariance).float()
        errors.append(relative_output_error(weight_matrices(layer), after, metric))
    assert errors[0] <= errors[1] * (1 + 1e-5)


def test_adaptive_rounding_finds_what_error_feedback_misses():
    errors = [
        error_of(f"uniform_quantization(bits=3, rounding={rounding})", "conv2d") for rounding in ("adaptive", "gptq")
    ]
    assert errors[0] < 0.97 * errors[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", ["channel", "tensor", "group"])
@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
def test_the_scale_search_never_loses_more_than_min_max(kind, bits, granularity, scheme):
    usual = f"uniform_quantization(bits={bits}, granularity={granularity}, scheme={scheme}, rounding=nearest, scale="
    assert weighted_error_of(f"{usual}mse)", kind) <= weighted_error_of(f"{usual}minmax)", kind) * (1 + 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_finer_scales_never_lose_more(kind):
    usual = "uniform_quantization(bits=3, rounding=nearest, granularity="
    errors = [weighted_error_of(f"{usual}{more})", kind) for more in ("group, group_size=9", "channel", "tensor")]
    assert errors == sorted(errors)


@pytest.mark.parametrize("kind", KINDS)
def test_closed_form_scales_are_the_best_ones(kind):
    layer, _, statistics = prepared(kind)
    importance, rows = importance_of(layer, statistics), weight_of(layer).flatten(1)
    for name in ("ternary", "binary"):
        fmt = weight_format(make_technique(name, {"rounding": "nearest"}).compress(layer, statistics))

        def lost(scale, fmt=fmt):
            other = CodebookFormat(scale, fmt.width, fmt.entries)
            return ((other.decode(other.encode(rows)) - rows).square() * importance).sum(1)

        for factor in np.linspace(0.3, 2.5, 40):
            assert bool((lost(fmt.scale) <= lost(fmt.scale * float(factor)) * (1 + 1e-5)).all())


# What each alphabet is


def test_fixed_point_counts_in_powers_of_two_and_saturates():
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.3, -0.3, 5.0, -5.0]]))
    statistics = type(prepared("linear")[2]).white(layer)
    module = make_technique("fixed_point", {"width": 4, "point": 1, "rounding": "nearest"}).compress(layer, statistics)
    assert weight_of(module).tolist() == [[0.25, -0.25, 0.875, -1.0]]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
def test_dynamic_fixed_point_saturates_no_more_than_it_may(rate):
    layer, _, statistics = prepared("conv2d")
    module = make_technique("dynamic_fixed_point", {"width": 8, "overflow_rate": rate}).compress(layer, statistics)
    (scale,) = weight_format(module).scale.tolist()
    beyond = (weight_of(layer).abs() > scale * 128).float().mean()
    assert beyond <= rate
    assert (weight_of(layer).abs() > scale * 64).float().mean() > rate, "a lower point would do"


def test_powers_of_two_have_no_fraction():
    layer, _, statistics = prepared("conv2d")
    weights = weight_of(make_technique("power_of_two", {"bits": 4}).compress(layer, statistics))
    assert set(torch.frexp(weights).mantissa.unique().tolist()) == {-0.5, 0.0, 0.5}


def test_least_power_of_two_above():
    values = torch.tensor([1.0, 1.1, 0.5, 0.3, 3e-39, 1e30])
    above = power_of_two_above(values)
    assert bool((above >= values).all())
    assert bool((above < 2 * values).all())
    assert bool((torch.frexp(above).mantissa == 0.5).all())


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("technique", ["codebook", "logarithmic", "power_of_two", "recentralized"])
def test_zeros_stay_exactly_zero(technique, rounding, bits):
    if technique == "recentralized" and bits == 2:
        return
    layer, _, statistics = prepared("conv2d")
    recipe = Recipe.parse(f"magnitude_pruning(sparsity=0.5) + {technique}(bits={bits}, rounding={rounding})")
    zeros = weight_of(recipe.techniques[0].compress(layer, statistics)) == 0
    assert bool((weight_of(recipe.compress(layer, statistics))[zeros] == 0).all())


def test_an_alphabet_without_zero_is_refused_behind_zeros():
    recipe = Recipe.parse("magnitude_pruning(sparsity=0.5) + binary")
    assert "no zero" in recipe.unsupported(layer_of("conv2d"))
    assert recipe.without(Stage.SPARSITY).unsupported(layer_of("conv2d")) is None


def test_clustering_keeps_zero_and_finds_clusters():
    values = torch.cat([torch.full((10,), 3.3), torch.full((5,), -1.9), torch.full((7,), 0.1)])
    centres = clustered(values, torch.ones(22), torch.arange(-2, 2))
    torch.testing.assert_close(centres, torch.tensor([-1.9, -1.0, 0.0, 3.3]), rtol=0, atol=2e-4)


def test_mixture_of_two_normals_is_found():
    generator = torch.Generator().manual_seed(6)
    values = torch.cat(
        [torch.randn(3000, generator=generator) * 0.1 - 1, torch.randn(5000, generator=generator) * 0.3 + 1]
    )
    means, deviations = two_normals(values)
    torch.testing.assert_close(means, torch.tensor([-1.0, 1.0]), rtol=0, atol=0.03)
    torch.testing.assert_close(deviations, torch.tensor([0.1, 0.3]), rtol=0, atol=0.03)


def test_recentralised_weights_lose_less_than_powers_of_two_where_weights_gather_at_two_centres():
    layer, _, statistics = prepared("conv2d")
    with torch.no_grad():
        noise = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(7))
        layer.weight.copy_(layer.weight.sign() + 0.1 * noise)
    errors = [
        (weight_of(make_technique(name, {"bits": 4, "rounding": "nearest"}).compress(layer, statistics)) - layer.weight)
        for name in ("recentralized", "power_of_two")
    ]
    assert errors[0].square().sum() < 0.3 * errors[1].square().sum()


@pytest.mark.parametrize(("exponent", "mantissa"), [(8, 10), (6, 8)])
def test_minifloats_beyond_16_bits_are_refused(exponent, mantissa):
    with pytest.raises(ConfigurationError, match="16 bits"):
        make_technique("minifloat", {"exponent": exponent, "mantissa": mantissa})


# The edges of number ranges

ALL = [
    "minifloat",
    "minifloat(exponent=8, mantissa=7)",
    "minifloat(exponent=4, mantissa=3)",
    "minifloat(exponent=2, mantissa=1)",
    "dynamic_fixed_point(width=6)",
    "power_of_two",
    "logarithmic",
    "ternary",
    "binary",
    "codebook",
    "recentralized",
    "uniform_quantization(bits=3, granularity=tensor)",
    "uniform_quantization(bits=3, granularity=group)",
    "uniform_quantization(bits=3, rounding=adaptive)",
]


@pytest.mark.parametrize("recipe", [*ALL, "logarithmic(rounding=nearest)"])
@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e30])
def test_tiny_huge_and_zero_weights_lose_about_as_much_as_usual_ones(recipe, factor):
    layer, inputs, statistics = prepared("conv2d")
    expected = error_of(recipe, "conv2d")
    with torch.no_grad():
        for value in layer.parameters():
            value.mul_(factor)
        module = Recipe.parse(recipe).compress(layer, statistics)
        assert bool(torch.isfinite(module(inputs)).all())
    error = relative_output_error(weight_matrices(layer), effective_matrix(module), statistics.covariance)
    # A power of two as scale fits some weights better than others.
    assert error <= (0.0 if factor == 0 else 4 * expected)
    fmt = weight_format(module)
    assert torch.equal(fmt.decode(fmt.encode(weight_of(module))), weight_of(module))


@pytest.mark.parametrize("recipe", [*ALL, "fixed_point"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_precisions_come_back_as_they_were(recipe, dtype):
    layer, _, statistics = prepared("conv2d")
    module = Recipe.parse(recipe).compress(layer.to(dtype), statistics)
    assert {value.dtype for value in module.parameters()} == {dtype}
    usual = effective_matrix(Recipe.parse(recipe).compress(layer_of("conv2d"), statistics))
    assert (effective_matrix(module) - usual).abs().mean() < 0.1 * usual.abs().mean()


@pytest.mark.parametrize("recipe", [*ALL, "fixed_point"])
@pytest.mark.parametrize("layer", [nn.Conv2d(1, 1, 1), nn.Linear(1, 1, bias=False)], ids=repr)
def test_layers_of_one_weight(recipe, layer):
    statistics = type(prepared("linear")[2]).white(layer)
    module = Recipe.parse(recipe).compress(layer.eval(), statistics)
    assert bool(torch.isfinite(weight_of(module)).all())


# What runs


def test_every_format_runs_in_the_runtime(tmp_path: Path):
    recipes = [*ALL[:11], "uniform_quantization(bits=4, granularity=group, group_size=5, scheme=affine)", ALL[-3]]
    model = nn.Sequential(*(nn.Conv2d(6, 6, 3, padding=1) for _ in recipes)).eval().requires_grad_(False)
    statistics = type(prepared("linear")[2])
    generator = torch.Generator().manual_seed(8)
    for place, recipe in enumerate(recipes):
        model[place].weight.copy_(torch.randn(model[place].weight.shape, generator=generator) / 5)
        model[place] = Recipe.parse(recipe).compress(model[place], statistics.white(model[place]))
    wrapped = Recipe.parse("uniform_quantization(bits=6, granularity=tensor) + activation_quantization(width=4)")
    model.append(wrapped.compress(nn.Conv2d(6, 6, 1, bias=False), statistics.white(nn.Conv2d(6, 6, 1))).eval())
    images = torch.randn(4, 6, 8, 8, generator=generator)
    export_onnx(model, images, tmp_path / "model.onnx")
    with torch.no_grad():
        expected = model(images)
    assert expected.unique().numel() <= 16
    difference = (run_model(tmp_path / "model.onnx", images) - expected).abs()
    assert difference.median() < 1e-6
    assert difference.max() <= 1.5 * model[-1].output_range.scale
    kinds = {
        tensor.data_type for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer if len(tensor.dims) == 4
    }
    assert {
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.UINT8,
        onnx.TensorProto.UINT4,
    } <= kinds


@pytest.mark.parametrize("kind", KINDS)
def test_a_coarser_step_takes_fewer_bytes_and_loses_more(kind):
    layer, _, statistics = prepared(kind)
    recipes = [Recipe.parse(f"step_quantization(step={step})") for step in (0.1, 0.5, 1.0, 2.0)]
    sizes = [packed_size(recipe.compress(layer, statistics)) for recipe in recipes]
    errors = [error_of(str(recipe), kind) for recipe in recipes]
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert sizes[0] > sizes[-1]
