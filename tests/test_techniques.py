"""The contract of every technique, over the registry; what each promises; and layers at the edge of number ranges."""

import dataclasses
import itertools
from functools import cache

import pytest
import torch
from layer_kinds import KINDS, layer_of, prepared, statistics_of
from torch import nn

from plywise.compressors.errors import ConfigurationError, UnsupportedLayerError
from plywise.compressors.formats.scale_search import best_uniform_format
from plywise.compressors.formats.weight_format import UniformFormat, weight_format
from plywise.compressors.modules.layers import groups_of, out_channels, weight_matrices, weight_of
from plywise.compressors.modules.static_quantized import StaticQuantized
from plywise.compressors.packing.packed_file import load_packed, save_packed
from plywise.compressors.recipes.technique import Recipe, Stage, make_technique, techniques
from plywise.compressors.statistics.channels import keep_inputs, kept_count
from plywise.compressors.statistics.error_feedback import relative_output_error
from plywise.compressors.statistics.leaves import effective_matrix
from plywise.compressors.statistics.statistics import LayerStatistics

EVERY = [technique for kind in techniques().values() for technique in kind.grid()]
ACCEPTED = [
    pytest.param(technique, kind, id=f"{technique}-{kind}")
    for technique, kind in itertools.product(EVERY, KINDS)
    if technique.unsupported(layer_of(kind)) is None
]
PACKED_KINDS = ("conv1d-same", "conv2d-stride", "depthwise", "transposed-grouped", "embedding", "linear")


def tensors(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@cache
def error_of(technique, kind):
    layer, _, statistics = prepared(kind)
    after = effective_matrix(technique.compress(layer, statistics))
    return relative_output_error(weight_matrices(layer), after, statistics.covariance)


# The contract


def test_registry_holds_a_technique_of_every_stage():
    assert {kind.stage for kind in techniques().values()} == set(Stage)
    assert {
        "activation_quantization",
        "filter_pruning",
        "low_rank",
        "magnitude_pruning",
        "uniform_quantization",
    } <= set(techniques())


@pytest.mark.parametrize("name", techniques())
def test_declaration_is_complete(name):
    kind = techniques()[name]
    assert name == name.lower()
    assert kind.summary
    assert any(character.isdigit() for character in kind.source), "a source names its year"
    assert all(field.metadata["help"] for field in dataclasses.fields(kind))


@pytest.mark.parametrize("technique", EVERY, ids=str)
def test_written_form_reads_back(technique):
    assert Recipe.parse(str(technique)) == Recipe((technique,))
    assert make_technique(technique.name, technique.settings()) == technique


@pytest.mark.parametrize(("technique", "kind"), ACCEPTED)
def test_contract(technique, kind):
    layer, inputs, statistics = prepared(kind)
    before, moments = tensors(layer), statistics.covariance.clone()
    module = technique.compress(layer, statistics)
    assert same(tensors(layer), before), "the layer given was changed"
    assert torch.equal(statistics.covariance, moments), "the statistics given were changed"
    shared = {value.data_ptr() for value in layer.state_dict().values()}
    owned = {value.data_ptr() for value in module.state_dict().values()}
    assert technique.stage == Stage.ACTIVATIONS or not shared & owned, "it shares a tensor with the original"
    assert not module.training
    with torch.no_grad():
        expected, actual = layer(inputs), module(inputs)
        if inputs.dim() == 4:
            channels_last = module(inputs.to(memory_format=torch.channels_last))
            assert float((channels_last - actual).norm()) <= 1e-3 * float(actual.norm())
    shape = list(expected.shape)
    if technique.name == "filter_pruning":
        shape[1] = kept_count(out_channels(layer), technique.ratio)
        if kind == "linear-tokens":
            shape[1:] = [expected.shape[1], kept_count(out_channels(layer), technique.ratio)]
    assert list(actual.shape) == shape
    assert bool(torch.isfinite(actual).all())
    fmt = weight_format(module)
    assert technique.bits == (None if fmt is None else fmt.bits)
    if fmt is not None:
        symbols = fmt.encode(weight_of(module))
        assert 0 <= int(symbols.min()) <= int(symbols.max()) < 2**fmt.bits
        assert torch.equal(fmt.decode(fmt.encode(weight_of(module))), weight_of(module))
    again = technique.compress(layer_of(kind), statistics)
    assert same(tensors(module), tensors(again)), "the same seed gave another result"


@pytest.mark.parametrize(("technique", "kind"), [case for case in ACCEPTED if case.values[1] in PACKED_KINDS])
def test_packed_file_gives_back_every_bit(technique, kind, tmp_path):
    layer, inputs, statistics = prepared(kind)
    model = nn.Sequential(technique.compress(layer, statistics)).eval()
    save_packed(model, nn.Sequential(layer), tmp_path / "weights", {})
    loaded = load_packed(tmp_path / "weights", nn.Sequential(layer_of(kind, seed=9)))
    assert same(tensors(loaded), tensors(model))
    with torch.no_grad():
        # The same weights; but on some machines a product depends on where in memory they lie.
        torch.testing.assert_close(loaded(inputs), model(inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("technique", [kind() for kind in techniques().values()], ids=str)
@pytest.mark.parametrize("layer", [nn.Conv3d(4, 4, 3), nn.EmbeddingBag(4, 4), nn.LayerNorm(4), nn.ReLU()], ids=repr)
def test_other_layers_are_refused_with_a_reason(technique, layer):
    reason = technique.unsupported(layer)
    assert reason
    with pytest.raises(UnsupportedLayerError, match=technique.name):
        Recipe((technique,)).compress(layer, LayerStatistics.white(nn.Linear(4, 4)))


@pytest.mark.parametrize("kind", ["grouped", "depthwise"])
@pytest.mark.parametrize("name", ["filter_pruning", "low_rank"])
def test_structure_of_grouped_convolutions_is_refused(kind, name):
    assert "grouped" in make_technique(name, {}).unsupported(layer_of(kind))


def test_too_low_a_rank_is_refused():
    assert "too low" in make_technique("low_rank", {"ratio": 0.25}).unsupported(nn.Linear(6, 6))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("uniform_quantisation", {}, "uniform_quantization"),
        ("uniform_quantization", {"bit": 4}, "bits"),
        ("uniform_quantization", {"bits": 4.0}, "whole number"),
        ("uniform_quantization", {"bits": 9}, "between 1 and 8"),
        ("uniform_quantization", {"bits": True}, "whole number"),
        ("uniform_quantization", {"scheme": "odd"}, "choose one of"),
        ("magnitude_pruning", {"sparsity": float("nan")}, "between"),
        ("low_rank", {"ratio": "half"}, "a number"),
    ],
)
def test_wrong_settings_say_what_is_allowed(name, settings, words):
    with pytest.raises(ConfigurationError, match=words):
        make_technique(name, settings)


# What each technique promises


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
def test_more_bits_never_lose_more(kind, rounding, scheme):
    settings = {"rounding": rounding, "scheme": scheme}
    errors = [
        error_of(make_technique("uniform_quantization", {"bits": b, **settings}), kind) for b in (2, 3, 4, 6, 7, 8)
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("kind", KINDS)
def test_less_sparsity_never_loses_more(kind):
    shares = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9]
    errors = [error_of(make_technique("magnitude_pruning", {"sparsity": share}), kind) for share in shares]
    assert errors == sorted(errors)
    assert errors[0] < 1e-12


@pytest.mark.parametrize("kind", [k for k in KINDS if make_technique("low_rank", {}).unsupported(layer_of(k)) is None])
@pytest.mark.parametrize("sides", ["spatial", "input", "output", "both", "cp"])
def test_higher_rank_never_loses_more(kind, sides):
    techniques = [make_technique("low_rank", {"ratio": r, "sides": sides}) for r in (0.25, 0.4, 0.6, 0.75, 0.95)]
    usable = [technique for technique in techniques if technique.unsupported(layer_of(kind)) is None]
    assert len(usable) > 2 or sides == "cp"
    errors = [error_of(technique, kind) for technique in usable]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    "kind",
    [
        param.values[1]
        for param in ACCEPTED
        if param.values[0] == make_technique("low_rank", {"ratio": 0.4}) and param.values[1] != "embedding"
    ],
)
def test_low_rank_takes_the_macs_that_it_names(kind):
    layer, inputs, statistics = prepared(kind)
    module = make_technique("low_rank", {"ratio": 0.4}).compress(layer, statistics)
    # Without padding the first leaf runs on the border as well, which no rank accounts for.
    border = 7 / 5 if kind == "conv2d-bare" else 1.0
    assert macs(module, inputs) <= 0.4 * border * macs(nn.Sequential(layer), inputs)


def macs(chain, inputs):
    total = 0
    for leaf in chain:
        inputs = leaf(inputs)
        features = weight_matrices(leaf).shape[2]
        total += inputs.numel() * features
    return total


@pytest.mark.parametrize("kind", ["linear", "linear-tokens", "pointwise", "pointwise-stride"])
def test_activation_aware_svd_never_loses_more_than_plain_svd(kind):
    layer, _, statistics = prepared(kind)
    matrix = weight_matrices(layer)[0].double()
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    for ratio in (0.25, 0.4, 0.6, 0.75, 0.95):
        technique = make_technique("low_rank", {"ratio": ratio})
        (rank,) = technique.ranks(layer)
        plain = (left[:, :rank] * values[:rank] @ right[:rank])[None].float()
        aware = effective_matrix(technique.compress(layer, statistics))
        errors = [relative_output_error(matrix[None], after, statistics.covariance) for after in (aware, plain)]
        assert errors[0] <= errors[1] * (1 + 1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_scale_search_never_loses_more_than_min_max(kind, bits, symmetric):
    weights = weight_of(layer_of(kind)).flatten(1)
    importance = torch.rand(weights.shape, generator=torch.Generator().manual_seed(0)) + 0.1
    best = best_uniform_format(weights, importance, bits, symmetric)
    middle, low, high = 2 ** (bits - 1), weights.amin(1).clamp(max=0), weights.amax(1).clamp(min=0)
    span = torch.maximum(-low / middle, high / max(1, middle - 1)) if symmetric else (high - low) / (2**bits - 1)
    spanning = UniformFormat(bits, span, best.zero_point)
    lost = [((fmt.decode(fmt.encode(weights)) - weights).square() * importance).sum(1) for fmt in (best, spanning)]
    assert bool((lost[0] <= lost[1] * (1 + 1e-5)).all())


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "embedding" and groups_of(layer_of(k)) == 1])
def test_refitted_inputs_never_lose_more_than_dropped_ones(kind):
    layer, _, statistics = prepared(kind)
    matrix, positions = weight_matrices(layer), weight_of(layer)[0, 0].numel()
    for seed in range(5):
        keep = torch.randperm(12, generator=torch.Generator().manual_seed(seed))[: 3 + seed].sort().values
        columns = (keep[:, None] * positions + torch.arange(positions)).flatten()
        new, found = keep_inputs(layer, statistics, keep)
        errors = []
        for kept in (weight_matrices(new), matrix[:, :, columns]):
            after = torch.zeros_like(matrix).index_copy_(2, columns, kept)
            errors.append(relative_output_error(matrix, after, statistics.covariance))
        assert errors[0] <= errors[1]
        assert found.covariance.shape[-1] == columns.numel()


def test_removed_inputs_that_others_repeat_are_no_loss():
    layer = nn.Linear(6, 5)
    inputs = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) + 1.0
    inputs = torch.cat([inputs, 2.0 * inputs], 1)
    new, _ = keep_inputs(layer, statistics_of(layer, inputs), torch.tensor([0, 1, 2]))
    with torch.no_grad():
        assert (new(inputs[:, :3]) - layer(inputs)).abs().max() < 0.05 * layer(inputs).abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 7, 6, 4, 3, 2])
def test_error_feedback_never_loses_more_than_nearest_rounding(kind, bits):
    errors = [
        error_of(make_technique("uniform_quantization", {"bits": bits, "rounding": rounding}), kind)
        for rounding in ("gptq", "nearest")
    ]
    assert errors[0] <= errors[1]


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_pruning_leaves_the_zeros_that_it_names_and_quantisation_keeps_them(kind, sparsity):
    layer, _, statistics = prepared(kind)
    recipe = Recipe.parse(f"magnitude_pruning(sparsity={sparsity}) + uniform_quantization(bits=4)")
    sparse = recipe.without(Stage.WEIGHTS).compress(layer, statistics)
    zeros = weight_of(sparse) == 0
    assert int(zeros.sum()) == round(sparsity * zeros.numel())
    assert bool((weight_of(recipe.compress(layer, statistics))[zeros] == 0).all())


@pytest.mark.parametrize("technique", ["uniform_quantization(bits=3)", "magnitude_pruning", "low_rank"])
@pytest.mark.parametrize("kind", ["conv1d", "conv2d", "conv2d-bare", "pointwise", "linear"])
def test_mean_output_is_kept(technique, kind):
    layer, inputs, statistics = prepared(kind)
    # Padding is part of the statistics, so inputs and patches tell the same mean.
    with torch.no_grad():
        difference = Recipe.parse(technique).compress(layer, statistics)(inputs) - layer(inputs)
        spread = layer(inputs).std()
    assert difference.mean().abs() < 1e-4 * spread


def test_activation_ranges_round_inputs_and_outputs():
    layer, inputs, statistics = prepared("conv2d")
    module = make_technique("activation_quantization", {"range": "minmax"}).compress(layer, statistics)
    assert isinstance(module, StaticQuantized)
    with torch.no_grad():
        outputs = module(inputs)
        assert outputs.unique().numel() <= 256
        assert (outputs - layer(inputs)).abs().max() < 0.05 * layer(inputs).abs().max()


def test_mean_squared_range_never_rounds_worse_than_the_whole_span():
    values = torch.cat([torch.randn(5000, generator=torch.Generator().manual_seed(0)), torch.tensor([-20.0, 40.0])])
    layer, _, statistics = prepared("linear")
    statistics = dataclasses.replace(statistics, inputs=values.sort().values)
    lost = []
    for how in ("mse", "minmax"):
        module = make_technique("activation_quantization", {"range": how}).compress(layer, statistics)
        lost.append(float((module.input_range(values) - values).square().mean()))
    assert lost[0] < lost[1]


# The edges of number ranges

EDGES = [
    "magnitude_pruning",
    "uniform_quantization",
    "low_rank",
    "uniform_quantization(bits=2, scheme=affine)",
    "uniform_quantization(bits=4, rounding=nearest)",
    "magnitude_pruning + uniform_quantization(bits=3)",
    "low_rank + magnitude_pruning + uniform_quantization(bits=4)",
]
EDGE_CASES = [
    (recipe, kind)
    for recipe, kind in itertools.product(EDGES, ("conv2d", "depthwise", "transposed1d", "embedding", "linear"))
    if Recipe.parse(recipe).unsupported(layer_of(kind)) is None
]


def scaled(kind, factor):
    layer, inputs, statistics = prepared(kind)
    with torch.no_grad():
        for value in layer.parameters():
            value.mul_(factor)
    return layer, inputs, statistics


@pytest.mark.parametrize(("recipe", "kind"), EDGE_CASES)
@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e30])
def test_tiny_huge_and_zero_weights_lose_as_much_as_usual_ones(recipe, kind, factor):
    recipe = Recipe.parse(recipe)
    layer, inputs, statistics = scaled(kind, factor)
    module = recipe.compress(layer, statistics)
    with torch.no_grad():
        assert bool(torch.isfinite(module(inputs)).all())
    matrices = effective_matrix(module)
    error = relative_output_error(weight_matrices(layer), matrices, statistics.covariance)
    if factor == 0.0:
        assert error == 0.0
        assert not matrices.any()
    else:
        usual = recipe.compress(layer_of(kind), statistics)
        expected = relative_output_error(
            weight_matrices(layer_of(kind)), effective_matrix(usual), statistics.covariance
        )
        # Scales are bfloat16: where the factor moves them between two of its values, errors of 8 bits change.
        assert error == pytest.approx(expected, rel=0.2, abs=1e-9)


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e30])
@pytest.mark.parametrize("technique", [kind() for kind in techniques().values()], ids=str)
def test_every_technique_takes_zero_tiny_and_huge_weights(technique, factor):
    for kind in ("pointwise", "transposed-grouped", "embedding", "linear"):
        layer, inputs, statistics = scaled(kind, factor)
        if technique.unsupported(layer) is None:
            module = technique.compress(layer, statistics)
            with torch.no_grad():
                assert bool(torch.isfinite(module(inputs)).all()), kind


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("technique", [kind() for kind in techniques().values()], ids=str)
def test_every_technique_keeps_other_precisions(technique, dtype):
    for kind in ("pointwise", "transposed-grouped", "embedding", "linear"):
        layer, _, statistics = prepared(kind)
        layer = layer.to(dtype)
        if technique.unsupported(layer) is None:
            module = technique.compress(layer, statistics)
            assert {value.dtype for value in module.parameters()} == {dtype}, kind
            assert all(bool(torch.isfinite(value).all()) for value in module.parameters()), kind


@pytest.mark.parametrize(("recipe", "kind"), EDGE_CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_precisions_come_back_as_they_were(recipe, kind, dtype):
    recipe = Recipe.parse(recipe)
    layer, _, statistics = prepared(kind)
    layer = layer.to(dtype)
    module = recipe.compress(layer, statistics)
    assert {value.dtype for value in module.parameters()} == {dtype}
    assert all(bool(torch.isfinite(value).all()) for value in module.parameters())
    usual = effective_matrix(recipe.compress(layer_of(kind), statistics))
    assert (effective_matrix(module).float() - usual).abs().mean() < 0.1 * usual.abs().mean()


@pytest.mark.parametrize("recipe", ["magnitude_pruning", "uniform_quantization(bits=2)", "binary"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 1, 1),
        nn.Conv1d(1, 1, 3),
        nn.ConvTranspose2d(1, 1, 2),
        nn.Embedding(1, 1),
        nn.Linear(1, 1, bias=False),
    ],
    ids=repr,
)
def test_layers_of_one_channel(recipe, layer):
    module = Recipe.parse(recipe).compress(layer.eval(), LayerStatistics.white(layer))
    assert weight_of(module).shape == weight_of(layer).shape
    assert bool(torch.isfinite(weight_of(module)).all())
    assert make_technique("filter_pruning", {}).unsupported(layer)
    assert make_technique("low_rank", {}).unsupported(layer)


@pytest.mark.parametrize("recipe", EDGES)
def test_silent_inputs_do_no_harm(recipe):
    layer, inputs, _ = prepared("conv2d")
    statistics = statistics_of(layer, torch.zeros_like(inputs))
    module = Recipe.parse(recipe).compress(layer, statistics)
    assert all(bool(torch.isfinite(value).all()) for value in module.parameters())
