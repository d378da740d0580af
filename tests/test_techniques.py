"""The contract of every technique, over the registry; what each promises; and layers at the edge of number ranges."""

import contextlib
import copy
import dataclasses
import itertools
import math
from functools import cache

import pytest
import torch
from layer_kinds import KINDS, layer_of, prepared, statistics_of, supported, traits_of
from pairwise import covering
from torch import nn

from plywise.compressors.errors import ConfigurationError, UnsupportedLayerError
from plywise.compressors.formats.scale_search import best_uniform_format
from plywise.compressors.formats.weight_format import UniformFormat, is_short, weight_format
from plywise.compressors.modules.layers import (
    bias_of,
    groups_of,
    out_channels,
    weight_matrices,
    weight_of,
    with_weights,
)
from plywise.compressors.modules.static_quantized import StaticQuantized
from plywise.compressors.packing.packed_file import load_packed, save_packed
from plywise.compressors.quantization import recentralized
from plywise.compressors.quantization.weight_rounding import importance_of
from plywise.compressors.recipes.technique import Recipe, Stage, Technique, make_technique, techniques
from plywise.compressors.sparsity.sparse_fit import SparseFit
from plywise.compressors.statistics.channels import keep_inputs, kept_count
from plywise.compressors.statistics.error_feedback import relative_output_error
from plywise.compressors.statistics.leaves import effective_matrix
from plywise.compressors.statistics.statistics import LayerStatistics
from plywise.compressors.structure import depthwise_separable, low_rank


def legal(cls):
    """Returns a technique at every point of its hyperparameters' grids, also at those that the search leaves out."""
    fields = dataclasses.fields(cls)
    for values in itertools.product(*(field.metadata["grid"] for field in fields)):
        with contextlib.suppress(ConfigurationError):
            yield cls(**{field.name: value for field, value in zip(fields, values, strict=True)})


def in_pairs(cases):
    """Returns those of `(settings, kind)` that hold each pair of settings, each of a setting and a trait of the layer.

    Args:
        cases: all of them, settings as a technique or a dict.
    """
    rows = []
    for settings, kind in cases:
        values = settings.settings() if isinstance(settings, Technique) else settings
        rows.append({**values, **traits_of(kind), "kind": kind})
    return [cases[place] for place in covering(rows, apart=("kind",))]


def all_of(kinds=KINDS, **values):
    """Returns every `(settings, kind)` of the values of each setting, settings as a dict."""
    combinations = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    return list(itertools.product(combinations, kinds))


CASES = [
    case
    for cls in techniques().values()
    for case in in_pairs([(t, kind) for t, kind in itertools.product(legal(cls), KINDS) if supported(t, kind)])
]
USUAL = [cls() for cls in techniques().values()]


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


@pytest.mark.parametrize("name", techniques())
def test_written_form_reads_back(name):
    for technique in legal(techniques()[name]):
        assert Recipe.parse(str(technique)) == Recipe((technique,))
        assert make_technique(technique.name, technique.settings()) == technique


@pytest.mark.parametrize("name", techniques())
def test_grid_of_the_search_lies_on_the_grids_of_the_settings(name):
    cls = techniques()[name]
    points = list(cls.grid())
    assert len(set(points)) == len(points) > 0
    assert set(points) <= set(legal(cls))


def test_cases_hold_every_technique_on_every_kind_of_layer_that_it_takes():
    taken = {
        (t.name, kind) for cls in techniques().values() for t in legal(cls) for kind in KINDS if supported(t, kind)
    }
    assert {(technique.name, kind) for technique, kind in CASES} == taken


@pytest.mark.parametrize(("technique", "kind"), CASES, ids=str)
def test_contract(technique, kind, tmp_path):
    layer, inputs, statistics = prepared(kind)
    before, moments = tensors(layer), statistics.covariance.clone()
    module = technique.compress(layer, statistics)
    assert same(tensors(layer), before), "the layer given was changed"
    assert torch.equal(statistics.covariance, moments), "the statistics given were changed"
    shared = {value.data_ptr() for value in layer.state_dict().values()}
    owned = {value.data_ptr() for value in module.state_dict().values()}
    assert technique.stage == Stage.ACTIVATIONS or not shared & owned, "it shares a tensor with the original"
    assert not module.training
    check_outputs(technique, layer, module, inputs)
    check_format(technique, layer, module)
    again = technique.compress(layer_of(kind), statistics)
    assert same(tensors(module), tensors(again)), "the same seed gave another result"
    check_packed_file(layer, module, inputs, tmp_path / "weights")


def check_outputs(technique, layer, module, inputs):
    with torch.no_grad():
        expected, actual = layer(inputs), module(inputs)
        if inputs.dim() == 4:
            channels_last = module(inputs.to(memory_format=torch.channels_last))
            assert float((channels_last - actual).norm()) <= 1e-3 * float(actual.norm())
    shape = list(expected.shape)
    if technique.name == "filter_pruning":
        shape[-1 if isinstance(layer, nn.Linear) else 1] = kept_count(out_channels(layer), technique.ratio)
    assert list(actual.shape) == shape
    assert bool(torch.isfinite(actual).all())


def check_format(technique, layer, module):
    fmt = weight_format(module)
    assert technique.bits == (None if fmt is None else fmt.bits)
    if fmt is not None:
        weight = weight_of(module)
        symbols = fmt.encode(weight)
        assert 0 <= int(symbols.min()) <= int(symbols.max()) < 2**fmt.bits
        assert torch.equal(fmt.decode(symbols), weight)
        assert fmt.is_short
        assert bias_of(module) is None or is_short(bias_of(module))


def check_packed_file(layer, module, inputs, path):
    model = nn.Sequential(module).eval()
    save_packed(model, nn.Sequential(layer), path, {})
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for value in other.parameters():
            value.add_(1.0)
    loaded = load_packed(path, nn.Sequential(other))
    assert same(tensors(loaded), tensors(model))
    with torch.no_grad():
        # The same weights; but on some machines a product depends on where in memory they lie.
        torch.testing.assert_close(loaded(inputs), model(inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("technique", USUAL, ids=str)
def test_other_layers_are_refused_with_a_reason(technique):
    for layer in (nn.Bilinear(4, 4, 4), nn.EmbeddingBag(4, 4), nn.LayerNorm(4), nn.ReLU()):
        assert technique.unsupported(layer), layer
        with pytest.raises(UnsupportedLayerError, match=technique.name):
            Recipe((technique,)).compress(layer, LayerStatistics.white(nn.Linear(4, 4)))


@pytest.mark.parametrize("kind", ["grouped", "depthwise"])
def test_structure_of_grouped_convolutions_is_refused(kind):
    assert "grouped" in make_technique("low_rank", {}).unsupported(layer_of(kind))


def test_as_many_filters_of_each_group_stay():
    assert "depthwise" in make_technique("filter_pruning", {}).unsupported(layer_of("depthwise"))
    layer, _, statistics = prepared("grouped")
    cut = make_technique("filter_pruning", {"ratio": 0.5}).compress(layer, statistics)
    assert (cut.groups, cut.out_channels) == (layer.groups, layer.out_channels // 2)
    rows = [int((layer.weight == row).flatten(1).all(1).nonzero()) for row in cut.weight]
    places = [row // (layer.out_channels // layer.groups) for row in rows]
    assert places == [group for group in range(layer.groups) for _ in range(len(rows) // layer.groups)]


def test_too_low_a_rank_is_refused():
    assert "too low" in make_technique("low_rank", {"ratio": 0.25}).unsupported(nn.Linear(6, 6))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("uniform_quantisation", {}, "uniform_quantization"),
        ("uniform_quantization", {"bit": 4}, "bits"),
        ("uniform_quantization", {"bits": 4.0}, "whole number"),
        ("uniform_quantization", {"bits": 9}, "between 2 and 8"),
        ("uniform_quantization", {"bits": True}, "whole number"),
        ("uniform_quantization", {"scheme": "odd"}, "choose one of"),
        ("magnitude_pruning", {"sparsity": float("nan")}, "between"),
        ("low_rank", {"ratio": "half"}, "a number"),
    ],
)
def test_wrong_settings_say_what_is_allowed(name, settings, words):
    with pytest.raises(ConfigurationError, match=words):
        make_technique(name, settings)


def neighbours(cls, name):
    """Yields, for each two values next to each other on a setting's grid, all pairs that differ in it alone."""
    every = {tuple(technique.settings().items()): technique for technique in legal(cls)}
    (grid,) = (field.metadata["grid"] for field in dataclasses.fields(cls) if field.name == name)
    for value, other in itertools.pairwise(grid):
        # The last come first: of few bits, where settings count most.
        some = [technique for technique in reversed(every.values()) if getattr(technique, name) == value]
        moved = [tuple({**technique.settings(), name: other}.items()) for technique in some]
        yield [(one, every[key]) for one, key in zip(some, moved, strict=True) if key in every]


def differ(pair):
    """Returns whether two techniques make another network of some layer."""
    for layer, inputs, statistics in different_layers():
        if not any(technique.unsupported(layer) for technique in pair):
            with torch.no_grad():
                one, other = (technique.compress(layer, statistics)(inputs) for technique in pair)
            if one.shape != other.shape or not torch.equal(one, other):
                return True
    return False


def different_layers():
    """Yields layers whose weights are of one size or of all sizes, with inputs and statistics."""
    for decades, kind in itertools.product((0.0, 12.0), ("conv2d", "embedding", "linear")):
        layer, inputs, statistics = prepared(kind)
        sizes = torch.rand(weight_of(layer).shape, generator=torch.Generator().manual_seed(3))
        layer.weight.data.mul_(10.0 ** (-decades * sizes))
        yield layer, inputs, statistics
    layer = nn.Linear(32, 16).eval()
    yield layer, torch.eye(32), LayerStatistics.white(layer)


SETTINGS = [
    (name, field.name)
    for name, cls in techniques().items()
    for field in dataclasses.fields(cls)
    if len(field.metadata["grid"]) > 1
]


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_every_setting_makes_a_difference(name, setting):
    for pairs in neighbours(techniques()[name], setting):
        assert any(map(differ, pairs)), pairs[0]


# What each technique promises


@pytest.mark.parametrize(
    ("settings", "kind"), in_pairs(all_of(rounding=["nearest", "gptq"], scheme=["symmetric", "affine"])), ids=str
)
def test_more_bits_never_lose_more(settings, kind):
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


DECOMPOSED = [kind for kind in KINDS if supported(make_technique("low_rank", {}), kind)]


@pytest.mark.parametrize(
    ("settings", "kind"), in_pairs(all_of(DECOMPOSED, sides=["spatial", "input", "output", "both", "cp"])), ids=str
)
def test_higher_rank_never_loses_more(settings, kind):
    techniques = [make_technique("low_rank", {"ratio": ratio, **settings}) for ratio in (0.25, 0.4, 0.6, 0.75, 0.95)]
    usable = [technique for technique in techniques if supported(technique, kind)]
    assert len(usable) > 2 or settings["sides"] == "cp"
    errors = [error_of(technique, kind) for technique in usable]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("kind", [kind for kind in DECOMPOSED if kind != "embedding"])
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


def test_a_factored_table_is_the_best_of_its_rank():
    layer, _, statistics = prepared("embedding")
    weights, often = weight_of(layer).double(), statistics.frequency.double()
    technique = make_technique("low_rank", {"ratio": 0.4})
    found = effective_matrix(technique.compress(layer, statistics))[0].double()
    mean = (often[:, None] * weights).sum(0) / often.sum()
    values = torch.linalg.svdvals(often.sqrt()[:, None] * (weights - mean))
    lost = (often[:, None] * (found - weights).square()).sum()
    assert float(lost) == pytest.approx(float(values[technique.ranks(layer)[0] :].square().sum()), rel=1e-3)


@pytest.mark.parametrize("sides", ["spatial", "input", "both", "cp"])
def test_factors_fitted_together_lose_less_than_their_start(sides, monkeypatch):
    layer, _, statistics = prepared("conv2d")
    technique, errors = make_technique("low_rank", {"ratio": 0.4, "sides": sides}), []
    for fit in (low_rank.fitted, lambda start, *_: [part.double() for part in start]):
        monkeypatch.setattr(low_rank, "fitted", fit)
        after = effective_matrix(technique.compress(layer, statistics))
        errors.append(relative_output_error(weight_matrices(layer), after, statistics.covariance))
    assert errors[0] < 0.999 * errors[1]


@pytest.mark.parametrize(("settings", "kind"), in_pairs(all_of(bits=[8, 4, 3, 2, 1], symmetric=[True, False])), ids=str)
def test_scale_search_never_loses_more_than_min_max(settings, kind):
    bits, symmetric = settings["bits"], settings["symmetric"]
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


@pytest.mark.parametrize("kind", ["conv2d", "transposed1d", "pointwise", "linear"])
def test_an_input_fewer_keeps_the_mean_output(kind):
    layer, _, statistics = prepared(kind)
    new, found = keep_inputs(layer, statistics, torch.arange(0, 12, 3))
    means = [
        weight_matrices(each)[0] @ moments.mean[0] + (0.0 if bias_of(each) is None else bias_of(each))
        for each, moments in ((layer, statistics), (new, found))
    ]
    torch.testing.assert_close(means[1], means[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "ratio", "unit", "kept"),
    [
        (64, 0.3, 1, 48),
        (64, 0.99, 1, 8),
        (20, 0.4, 1, 12),
        (20, 0.99, 1, 4),
        (6, 0.5, 1, 3),
        (64, 0.3, 16, 48),
        (32, 0.0, 1, 32),
    ],
)
def test_kept_channels_are_as_many_as_integer_kernels_want(channels, ratio, unit, kept):
    assert kept_count(channels, ratio, unit) == kept


def test_removed_inputs_that_others_repeat_are_no_loss():
    layer = nn.Linear(6, 5)
    inputs = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) + 1.0
    inputs = torch.cat([inputs, 2.0 * inputs], 1)
    new, _ = keep_inputs(layer, statistics_of(layer, inputs), torch.tensor([0, 1, 2]))
    with torch.no_grad():
        assert (new(inputs[:, :3]) - layer(inputs)).abs().max() < 0.05 * layer(inputs).abs().max()


@pytest.mark.parametrize(("settings", "kind"), in_pairs(all_of(bits=[8, 7, 6, 4, 3, 2])), ids=str)
def test_error_feedback_never_loses_more_than_nearest_rounding(settings, kind):
    errors = [
        error_of(make_technique("uniform_quantization", {**settings, "rounding": rounding}), kind)
        for rounding in ("gptq", "nearest")
    ]
    assert errors[0] <= errors[1]


@pytest.mark.parametrize(("settings", "kind"), in_pairs(all_of(sparsity=[0.3, 0.5, 0.7])), ids=str)
def test_pruning_leaves_the_zeros_that_it_names_and_quantisation_keeps_them(settings, kind):
    sparsity, (layer, _, statistics) = settings["sparsity"], prepared(kind)
    recipe = Recipe.parse(f"magnitude_pruning(sparsity={sparsity}) + uniform_quantization(bits=4)")
    sparse = recipe.without(Stage.WEIGHTS).compress(layer, statistics)
    zeros = weight_of(sparse) == 0
    assert int(zeros.sum()) == round(sparsity * zeros.numel())
    assert bool((weight_of(recipe.compress(layer, statistics))[zeros] == 0).all())


def written_out_saliency(layer, statistics):
    """Magnitude times deviation of the input, or root of how often a row is read; for each weight on its own."""
    spread = torch.stack([moments.diagonal().sqrt() for moments in statistics.covariance])  # (groups, features)
    scores = weight_matrices(layer).abs() * spread[:, None]
    return scores if statistics.frequency is None else scores * statistics.frequency[:, None].sqrt()


@pytest.mark.parametrize("kind", KINDS)
def test_pruning_takes_the_weights_of_least_saliency(kind):
    layer, _, statistics = prepared(kind)
    scores = written_out_saliency(layer, statistics)
    gone = weight_matrices(make_technique("magnitude_pruning", {}).compress(layer, statistics)) == 0
    # A thousandth of the mean deviation is added, so that silent inputs have an order.
    assert scores[gone].max() <= 1.01 * scores[~gone].min()


@pytest.mark.parametrize(
    ("recipe", "alpha", "share"),
    [
        ("threshold_pruning(alpha=-0.5)", -0.5, 1.0),
        ("threshold_pruning(alpha=0.5)", 0.5, 1.0),
        ("dynamic_surgery", 0.0, 0.9),
        ("dynamic_surgery(alpha=0.5)", 0.5, 0.9),
    ],
)
@pytest.mark.parametrize("kind", ["conv2d", "depthwise", "embedding", "linear"])
def test_thresholds_lie_where_they_are_named(recipe, alpha, share, kind):
    layer, _, statistics = prepared(kind)
    scores = written_out_saliency(layer, statistics)
    threshold = share * (scores.mean() + alpha * scores.std())
    gone = weight_matrices(Recipe.parse(recipe).compress(layer, statistics)) == 0
    assert scores[gone].max() < 1.01 * threshold
    assert scores[~gone].min() > 0.99 * threshold


@pytest.mark.parametrize("kind", ["conv2d", "transposed1d", "conv1d-same", "linear"])
def test_a_pattern_never_loses_more_than_its_largest_weights_refitted(kind):
    layer, _, statistics = prepared(kind)
    weights, scores = weight_matrices(layer), written_out_saliency(layer, statistics)
    positions, mask = weight_of(layer)[0, 0].numel(), torch.zeros_like(scores, dtype=torch.bool)
    for row, position, run in itertools.product(range(scores.shape[1]), range(positions), range(0, 12, 4)):
        features = torch.arange(run, run + 4) * positions + position
        mask[0, row, features[scores[0, row, features].argsort(descending=True)[:2]]] = True
    plain = SparseFit.of(weights, statistics.covariance).refit(mask)
    expected = relative_output_error(weights, plain, statistics.covariance)
    assert error_of(make_technique("nm_sparsity", {}), kind) <= 1.001 * expected


REFITTED = ["magnitude_pruning", "threshold_pruning", "dynamic_surgery"]


@pytest.mark.parametrize("recipe", REFITTED)
@pytest.mark.parametrize("kind", ["conv2d-stride", "transposed1d", "grouped", "linear"])
def test_the_weights_that_stay_make_up_for_those_that_go(recipe, kind):
    layer, _, statistics = prepared(kind)
    sparse = weight_matrices(Recipe.parse(recipe).compress(layer, statistics))
    left = weight_matrices(layer) * (sparse != 0)
    errors = [relative_output_error(weight_matrices(layer), after, statistics.covariance) for after in (sparse, left)]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("technique", ["uniform_quantization(bits=3)", "magnitude_pruning", "low_rank"])
@pytest.mark.parametrize("kind", ["conv1d", "conv2d", "conv2d-bare", "pointwise", "linear"])
def test_mean_output_is_kept(technique, kind):
    layer, inputs, statistics = prepared(kind)
    # Padding is part of the statistics, so inputs and patches tell the same mean.
    with torch.no_grad():
        difference = Recipe.parse(technique).compress(layer, statistics)(inputs) - layer(inputs)
        spread = layer(inputs).std()
    assert difference.mean().abs() < 1e-4 * spread


@pytest.mark.parametrize(("granularity", "scales"), [("channel", (16,)), ("tensor", (1,)), ("group", (16, 4))])
def test_scales_are_shared_as_named(granularity, scales):
    layer, _, statistics = prepared("conv2d")
    technique = make_technique("uniform_quantization", {"granularity": granularity, "group_size": 32})
    assert tuple(weight_format(technique.compress(layer, statistics)).scale.shape) == scales


@pytest.mark.parametrize("steps", [1, 2])
def test_logarithmic_scales_are_the_best_on_their_own_grid(steps):
    layer, _, statistics = prepared("conv2d")
    rows, cost = weight_of(layer).flatten(1), importance_of(layer, statistics)
    settings = {"bits": 3, "steps": steps, "rounding": "nearest"}
    fmt = weight_format(make_technique("logarithmic", settings).compress(layer, statistics))

    def lost(factor):
        moved = fmt.scaled(torch.full((16,), factor))
        return ((moved.decode(moved.encode(rows)) - rows).square() * cost).sum(1)

    # The factor between two candidates is an eighth of a power of two.
    others = torch.stack([lost(2.0 ** (place / 8)) for place in (-3, -2, -1, 1, 2, 3)])
    assert bool((lost(1.0) < 1.05 * others.amin(0)).all())


def test_steps_that_would_clip_a_weight_grow():
    layer, _, statistics = prepared("conv2d")
    settings = {"step": 0.05, "rounding": "nearest"}
    layer.weight.data[:, 0, 0, 0] = 5.0
    module = make_technique("step_quantization", settings).compress(layer, statistics)
    error = (weight_of(module) - weight_of(layer)).flatten(1).abs().amax(1)
    assert bool((error <= 0.51 * weight_format(module).scale).all())


@pytest.mark.parametrize("step", [0.5, 1.0, 1.5])
def test_steps_are_shares_of_the_root_mean_square(step):
    layer, _, statistics = prepared("conv2d")
    found = weight_format(make_technique("step_quantization", {"step": step}).compress(layer, statistics)).scale
    torch.testing.assert_close(found, step * weight_of(layer).flatten(1).square().mean(1).sqrt(), rtol=5e-3, atol=0.0)


@pytest.mark.parametrize("kind", ["conv2d", "depthwise", "linear"])
def test_recentralised_weights_take_the_best_of_the_largest_powers(kind, monkeypatch):
    layer, _, statistics = prepared(kind)
    lost, tops = [], recentralized.TOPS
    for some in (tops, *((top,) for top in tops)):
        monkeypatch.setattr(recentralized, "TOPS", some)
        module = make_technique("recentralized", {"bits": 3, "rounding": "nearest"}).compress(layer, statistics)
        lost.append(float((weight_of(module) - weight_of(layer)).square().sum()))
    assert lost[0] <= 1.2 * min(lost[1:]), "the errors that count are weighted by the inputs"
    assert lost[0] < 0.8 * max(lost[1:])


def test_rows_that_are_read_often_are_rounded_best():
    layer, _, statistics = prepared("embedding")
    weights, errors = weight_of(layer) * torch.linspace(0.2, 3.0, 40)[:, None], []
    layer.weight.data.copy_(weights)
    often = 39.0 * (torch.arange(40) < 8) + 0.1
    recipe = Recipe.parse("uniform_quantization(bits=2, granularity=tensor)")
    for frequency in (often, torch.ones(40)):
        module = recipe.compress(layer, dataclasses.replace(statistics, frequency=frequency))
        errors.append(float(((weight_of(module) - weights).square().sum(1) * often).sum()))
    assert errors[0] < 0.9 * errors[1]


WEIGHED = [
    "uniform_quantization(bits=2, rounding=nearest)",
    "codebook(bits=2, rounding=nearest)",
    "binary(rounding=nearest)",
    "ternary(rounding=nearest)",
    "logarithmic(bits=3, rounding=nearest)",
]


@pytest.mark.parametrize("recipe", WEIGHED)
def test_scales_suit_the_weights_on_loud_inputs(recipe):
    layer = layer_of("linear")
    loud = torch.arange(12) < 4  # small weights on loud inputs, large ones on silent inputs
    layer.weight.data.mul_(torch.where(loud, 0.3, 1.0))
    usual = LayerStatistics.white(layer)
    told = dataclasses.replace(usual, covariance=torch.diag(torch.where(loud, 100.0, 0.01))[None])
    errors = [
        relative_output_error(
            weight_matrices(layer), weight_matrices(Recipe.parse(recipe).compress(layer, each)), told.covariance
        )
        for each in (told, usual)
    ]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("kind", ["conv2d", "depthwise", "transposed", "embedding", "linear"])
@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
def test_the_search_for_a_scale_loses_less_than_the_whole_span_which_clips_nothing(kind, scheme):
    layer, _, statistics = prepared(kind)
    rows, lost = weight_of(layer).flatten(1), {}
    for scale in ("mse", "minmax"):
        settings = {"bits": 2, "scheme": scheme, "rounding": "nearest", "scale": scale}
        module = make_technique("uniform_quantization", settings).compress(layer, statistics)
        lost[scale] = (weight_of(module).flatten(1) - rows).abs()
        steps = weight_format(module).scale
    assert lost["mse"].square().sum() < 0.95 * lost["minmax"].square().sum()
    assert bool((lost["minmax"].amax(1) <= 0.51 * steps).all())


def test_percentiles_cut_the_outermost_weight_at_both_ends():
    layer, _, statistics = prepared("conv2d")
    settings = {"bits": 8, "scheme": "affine", "rounding": "nearest", "scale": "percentile"}
    module = make_technique("uniform_quantization", settings).compress(layer, statistics)
    ordered, found = weight_of(layer).flatten(1).sort(1).values, weight_of(module).flatten(1)
    step = weight_format(module).scale
    assert bool(((found.amin(1) - ordered[:, 1]).abs() <= step).all())
    assert bool(((found.amax(1) - ordered[:, -2]).abs() <= step).all())


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("kind", ["conv1d", "conv2d", "transposed1d", "linear"])
def test_error_feedback_takes_the_scale_of_each_group(kind, bits):
    settings = {"bits": bits, "granularity": "group", "group_size": 5}
    errors = [
        error_of(make_technique("uniform_quantization", {**settings, "rounding": rounding}), kind)
        for rounding in ("gptq", "nearest")
    ]
    assert errors[0] <= errors[1]


STRUCTURES = [cls() for cls in techniques().values() if cls.stage == Stage.STRUCTURE and cls.name != "filter_pruning"]


@pytest.mark.parametrize("technique", STRUCTURES, ids=str)
def test_structures_keep_the_mean_output(technique):
    # Without padding, inputs and patches tell the same mean; a ReLU is taken to see normal variables.
    exact = 0.02 if technique.name == "micro_mlp" else 1e-4
    kinds = [kind for kind in ("conv1d", "conv2d", "pointwise", "linear") if supported(technique, kind)]
    for kind in kinds:
        layer, inputs, statistics = prepared(kind)
        channels = -1 if kind == "linear" else 1
        with torch.no_grad():
            outputs = [
                module(inputs).movedim(channels, 0).flatten(1)
                for module in (layer, technique.compress(layer, statistics))
            ]
        shift = (outputs[1] - outputs[0]).mean(1).abs() / outputs[0].std(1)
        assert shift.max() < exact, kind
    assert kinds


def test_the_mix_behind_a_relu_makes_up_for_what_it_cuts():
    layer, _, statistics = prepared("linear")
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(statistics.covariance[0].double()).float()
    inputs = torch.randn(20_000, 12, generator=generator) @ root.T + statistics.mean[0]
    module = make_technique("micro_mlp", {}).compress(layer, statistics)
    lost = []
    for gain in (1.0, 1.0 / 0.977, 0.977):
        with torch.no_grad():
            hidden = module[1](module[0](inputs))
            error = layer(inputs) - gain * (hidden @ module[2].weight.T)
        lost.append(float(error.var(0).sum()))
    assert lost[0] == min(lost)


@pytest.mark.parametrize("recipe", ["sparse_coding", "block_diagonal", "low_rank", "micro_mlp"])
def test_structures_suit_the_inputs_that_they_were_told_of(recipe):
    layer, _, statistics = prepared("linear")
    loud = torch.where(torch.arange(12) < 4, 100.0, 0.01)
    told = dataclasses.replace(statistics, covariance=torch.diag(loud)[None])
    inputs = told.mean[0] + torch.randn(5000, 12, generator=torch.Generator().manual_seed(0)) * loud.sqrt()
    errors = []
    for each in (told, dataclasses.replace(LayerStatistics.white(layer), mean=told.mean)):
        with torch.no_grad():
            errors.append(float((Recipe.parse(recipe).compress(layer, each)(inputs) - layer(inputs)).var(0).sum()))
    assert errors[0] < 0.9 * errors[1]


def test_blocks_take_over_what_the_inputs_outside_them_said():
    layer, _, statistics = prepared("linear")
    module = make_technique("block_diagonal", {}).compress(layer, statistics)
    with torch.no_grad():
        fitted = (module(torch.eye(12)) - module(torch.zeros(12))).T[None]
    plain = torch.where(fitted.abs() > 1e-6, weight_matrices(layer), 0.0)
    errors = [relative_output_error(weight_matrices(layer), after, statistics.covariance) for after in (fitted, plain)]
    assert errors[0] < 0.95 * errors[1]


def test_a_mix_of_filters_is_a_good_start_before_the_fit(monkeypatch):
    layer, _, statistics = prepared("conv2d")
    errors = []
    for fit in (depthwise_separable.fitted, lambda start, *_: start):
        monkeypatch.setattr(depthwise_separable, "fitted", fit)
        after = effective_matrix(make_technique("depthwise_separable", {}).compress(layer, statistics))
        errors.append(relative_output_error(weight_matrices(layer), after, statistics.covariance))
    assert errors[0] <= errors[1] <= 1.15 * errors[0]


@pytest.mark.parametrize("kind", ["conv2d", "linear"])
def test_a_layer_with_new_weights_has_a_bias_of_its_own(kind):
    layer = layer_of(kind)
    new = with_weights(layer, 2.0 * weight_matrices(layer))
    assert torch.equal(new.bias, layer.bias)
    assert new.bias.data_ptr() != layer.bias.data_ptr()


def test_activation_ranges_round_inputs_and_outputs():
    layer, inputs, statistics = prepared("conv2d")
    module = make_technique("activation_quantization", {"range": "minmax"}).compress(layer, statistics)
    assert isinstance(module, StaticQuantized)
    with torch.no_grad():
        outputs = module(inputs)
        assert outputs.unique().numel() <= 256
        assert (outputs - layer(inputs)).abs().max() < 0.05 * layer(inputs).abs().max()


@pytest.mark.parametrize("width", [8, 6, 4])
@pytest.mark.parametrize("span", ["minmax", "percentile", "fixed_point"])
def test_activation_ranges_span_what_they_name(span, width):
    drawn = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    values = torch.cat([drawn, torch.tensor([-20.0, 40.0])]).sort().values
    layer, _, statistics = prepared("linear")
    statistics = dataclasses.replace(statistics, inputs=values, outputs=2.0 * values)
    module = make_technique("activation_quantization", {"range": span, "width": width}).compress(layer, statistics)
    for found, seen in ((module.input_range, values), (module.output_range, 2.0 * values)):
        low, high = found(torch.tensor([-1e6, 1e6])).tolist()
        step = (high - low) / (2**width - 1)
        least, most = (seen[2], seen[-3]) if span == "percentile" else (seen[0], seen[-1])
        assert low < least + 0.51 * step
        assert high > most - 0.51 * step
        if span == "fixed_point":
            assert found.scale == 2.0 ** round(math.log2(found.scale))
            assert high - low < 2.1 * (most - least)
        else:
            assert step == pytest.approx(float(most - least) / (2**width - 1), rel=1e-4)


def test_mean_squared_range_never_rounds_worse_than_the_whole_span():
    values = torch.cat([torch.randn(5000, generator=torch.Generator().manual_seed(0)), torch.tensor([-20.0, 40.0])])
    layer, _, statistics = prepared("linear")
    statistics = dataclasses.replace(statistics, inputs=values.sort().values)
    lost = []
    for span in ("mse", "minmax"):
        module = make_technique("activation_quantization", {"range": span}).compress(layer, statistics)
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
EDGE_KINDS = ("conv2d", "depthwise", "transposed1d", "embedding", "linear")


def edge_cases(**values):
    """Returns pairs of settings and kind that every recipe takes, with the recipe among the settings."""
    cases = all_of(EDGE_KINDS, recipe=EDGES, **values)
    return in_pairs([case for case in cases if Recipe.parse(case[0]["recipe"]).unsupported(layer_of(case[1])) is None])


def scaled(kind, factor):
    layer, inputs, statistics = prepared(kind)
    with torch.no_grad():
        for value in layer.parameters():
            value.mul_(factor)
    return layer, inputs, statistics


@pytest.mark.parametrize(("settings", "kind"), edge_cases(factor=[0.0, 1e-30, 1e30]), ids=str)
def test_tiny_huge_and_zero_weights_lose_as_much_as_usual_ones(settings, kind):
    recipe, factor = Recipe.parse(settings["recipe"]), settings["factor"]
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


@pytest.mark.parametrize("technique", USUAL, ids=str)
def test_every_technique_takes_zero_tiny_and_huge_weights(technique):
    for factor, kind in itertools.product(
        (0.0, 1e-30, 1e30), ("pointwise", "transposed-grouped", "embedding", "linear")
    ):
        layer, inputs, statistics = scaled(kind, factor)
        if technique.unsupported(layer) is None:
            module = technique.compress(layer, statistics)
            with torch.no_grad():
                assert bool(torch.isfinite(module(inputs)).all()), (factor, kind)


@pytest.mark.parametrize("technique", USUAL, ids=str)
def test_every_technique_keeps_other_precisions(technique):
    kinds = ("pointwise", "transposed-grouped", "embedding", "linear")
    for dtype, kind in itertools.product((torch.float64, torch.float16), kinds):
        layer, _, statistics = prepared(kind)
        layer = layer.to(dtype)
        if technique.unsupported(layer) is None:
            module = technique.compress(layer, statistics)
            assert {value.dtype for value in module.parameters()} == {dtype}, kind
            assert all(bool(torch.isfinite(value).all()) for value in module.parameters()), (dtype, kind)


@pytest.mark.parametrize(
    ("settings", "kind"), edge_cases(dtype=[torch.float64, torch.float16, torch.bfloat16]), ids=str
)
def test_other_precisions_come_back_as_they_were(settings, kind):
    recipe, dtype = Recipe.parse(settings["recipe"]), settings["dtype"]
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
