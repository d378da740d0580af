"""Structures in the place of a layer: what they promise about its output, and that they pack, export and quantise."""

import json
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from layer_kinds import inputs_of, layer_of, prepared, statistics_of
from torch import nn
from torch.nn import functional as F

from plywise.compressors.errors import FileFormatError
from plywise.compressors.modules.composition import composed, dense_kernel
from plywise.compressors.modules.layers import is_pointwise, out_channels, weight_matrices, weight_of
from plywise.compressors.modules.rectifier import rectified
from plywise.compressors.packing.module_reader import PayloadReader, build
from plywise.compressors.packing.module_spec import build_leaf
from plywise.compressors.packing.packed_file import load_packed, save_packed
from plywise.compressors.recipes.technique import Recipe
from plywise.compressors.statistics.channels import keep_inputs, keep_outputs, rebuilt
from plywise.compressors.statistics.error_feedback import relative_output_error
from plywise.compressors.statistics.leaves import effective_matrix
from plywise.compressors.statistics.statistics import LayerStatistics, branch_statistics, chain_statistics
from plywise.env.bank.repair import repair
from plywise.env.bank.repair_target import Target, places_of, rows_of
from plywise.env.calibration.calibration import moments
from plywise.env.costs.chains import chain_of
from plywise.env.costs.latency import chain_key
from plywise.env.network.operation import operations
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.operation_graph import operation_graph
from plywise.env.runtime.runtime import run_model

KERNELS = ("conv2d", "conv2d-stride", "conv2d-dilation", "conv2d-reflect", "conv1d", "conv1d-same")
POINTWISE = ("pointwise", "pointwise-stride", "linear", "linear-tokens")
STRUCTURES = (
    "low_rank(ratio=0.5)",
    "low_rank(ratio=0.5, sides=input)",
    "low_rank(ratio=0.5, sides=output)",
    "low_rank(ratio=0.5, sides=both)",
    "low_rank(ratio=0.5, sides=cp)",
    "depthwise_separable(filters=2)",
    "sparse_coding",
    "block_diagonal",
    "global_pool_head",
    "fire",
    "micro_mlp",
)
INTEGER = " + uniform_quantization(bits=7) + activation_quantization"
EXPORTED = [("low_rank(ratio=0.5)", "conv2d-stride"), ("depthwise_separable", "conv2d"), ("sparse_coding", "linear")]
EXPORTED += [("block_diagonal", kind) for kind in ("linear-tokens", "pointwise-stride")]
EXPORTED += [("low_rank(ratio=0.5, sides=cp)", "conv2d-stride"), ("global_pool_head", "linear")]
EXPORTED += [("fire", "conv2d-stride"), ("fire", "conv1d"), ("micro_mlp", "conv2d-stride"), ("micro_mlp", "linear")]
CASES = [
    (text, kind)
    for text in STRUCTURES
    for kind in (*KERNELS, *POINTWISE)
    if Recipe.parse(text).unsupported(layer_of(kind)) is None
]


@cache
def compressed(text, kind):
    layer, _, statistics = prepared(kind)
    return Recipe.parse(text).compress(layer, statistics)


def error(matrix, kind):
    layer, _, statistics = prepared(kind)
    return relative_output_error(weight_matrices(layer), matrix.float(), statistics.covariance)


def error_of(text, kind):
    return error(effective_matrix(compressed(text, kind)), kind)


def with_matrix(layer, matrix, bias):
    new = layer_of(layer)
    with torch.no_grad():
        new.weight.copy_(matrix.reshape(weight_of(new).shape))
    new.bias = nn.Parameter(bias)
    return new


@pytest.mark.parametrize(("text", "kind"), [case for case in CASES if case[0] != "micro_mlp"])  # its ReLU is none
def test_a_chain_computes_its_effective_matrix(text, kind):
    module = compressed(text, kind)
    with torch.no_grad():
        bias = module(torch.zeros_like(inputs_of(kind)[:1]))  # padding with zeros changes nothing
    bias = bias.flatten(0, -2)[0] if kind.startswith("linear") else bias[0].flatten(1)[:, 0]
    same = with_matrix(kind, effective_matrix(module)[0], bias)
    with torch.no_grad():
        assert torch.allclose(module(inputs_of(kind)), same(inputs_of(kind)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["conv2d", "conv2d-stride", "conv2d-dilation"])
def test_spatial_never_loses_more_than_the_plain_decomposition(kind):
    layer = layer_of(kind)
    outputs, inputs, height, width = weight_of(layer).shape
    down, across = (weight_of(leaf) for leaf in compressed("low_rank(ratio=0.5)", kind))
    assert down.shape[2:] == (height, 1)
    assert across.shape[2:] == (1, width)
    matrix = weight_of(layer).permute(0, 3, 1, 2).reshape(outputs * width, inputs * height)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = len(down)
    first = right[:rank].view(rank, inputs, height, 1)
    second = (
        (left[:, :rank] * values[:rank]).view(outputs, width, rank).transpose(1, 2).reshape(outputs, rank, 1, width)
    )
    plain = composed([first, second]).flatten(1)[None]
    assert error_of("low_rank(ratio=0.5)", kind) < 0.95 * error(plain, kind)


@pytest.mark.parametrize("kind", ["conv2d", "conv2d-bare", "conv2d-dilation", "conv1d"])
def test_a_polyadic_decomposition_loses_less_than_other_ones_by_1x1_kernels(kind):
    first, filters, last = compressed("low_rank(ratio=0.5, sides=cp)", kind)
    assert filters.groups == filters.in_channels == weight_of(first).shape[0]
    assert is_pointwise(first)
    assert is_pointwise(last)
    others = [error_of(f"low_rank(ratio=0.5, sides={sides})", kind) for sides in ("input", "output", "both")]
    assert error_of("low_rank(ratio=0.5, sides=cp)", kind) < min(others)


def test_a_kernel_that_is_polyadic_is_found():
    generator = torch.Generator().manual_seed(5)
    parts = [torch.randn(size, 6, generator=generator) for size in (24, 16, 9)]
    layer = nn.Conv2d(16, 24, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("or,ir,pr->oip", *parts).view(24, 16, 3, 3))
    module = Recipe.parse("low_rank(ratio=0.1, sides=cp)").compress(layer, LayerStatistics.white(layer))
    assert weight_of(module[0]).shape[0] == 7
    assert relative_output_error(weight_matrices(layer), effective_matrix(module), torch.eye(144)[None]) < 1e-4


@pytest.mark.parametrize("kind", ["conv2d", "conv2d-stride", "conv1d"])
def test_filters_never_lose_more_than_plain_separation(kind):
    whole = weight_matrices(layer_of(kind))[0].view(*weight_of(layer_of(kind)).shape[:2], -1)
    left, values, right = torch.linalg.svd(whole.transpose(0, 1), full_matrices=False)  # of each input channel
    plain = torch.einsum("iof,if,ifp->oip", left[:, :, :1], values[:, :1], right[:, :1]).flatten(1)[None]
    assert error_of("depthwise_separable(filters=1)", kind) < 0.95 * error(plain, kind)


@pytest.mark.parametrize("kind", ["conv2d", "conv2d-stride", "conv2d-reflect"])
def test_more_filters_never_lose_more(kind):
    errors = [error_of(f"depthwise_separable(filters={count})", kind) for count in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("kind", ["pointwise", "linear", "linear-tokens"])
def test_more_atoms_in_a_code_never_lose_more(kind):
    errors = [error_of(f"sparse_coding(atoms=0.5, density={density})", kind) for density in (0.2, 0.34, 0.5, 0.67)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("kind", ["pointwise", "linear", "linear-tokens"])
def test_codes_have_the_zeros_that_they_name_and_beat_random_atoms(kind):
    dictionary, codes = compressed("sparse_coding(atoms=0.5, density=0.5)", kind)
    assert weight_of(dictionary).shape[0] == 6
    assert bool(((weight_of(codes) != 0).flatten(1).sum(1) == 3).all())
    atoms = torch.randn(6, 12, generator=torch.Generator().manual_seed(0)).double()
    matrix = weight_matrices(layer_of(kind))[0].double()
    covariance = prepared(kind)[2].covariance[0].double()
    best = torch.linalg.solve(atoms @ covariance @ atoms.T, atoms @ covariance @ matrix.T).T  # dense codes
    assert error_of("sparse_coding(atoms=0.5, density=0.5)", kind) < error((best @ atoms)[None], kind)


@pytest.mark.parametrize("filters", [1, 2])
def test_statistics_behind_filters_are_those_of_what_they_give(filters):
    layer, inputs, statistics = prepared("conv2d-bare")
    chain = Recipe.parse(f"depthwise_separable(filters={filters})").compress(layer, statistics)
    first, second = chain_statistics(chain, statistics)
    assert first.covariance.shape == (12, 9, 9)
    with torch.no_grad():
        realised = statistics_of(chain[1], chain[0](inputs))
    assert torch.allclose(second.covariance, realised.covariance, rtol=1e-3, atol=1e-4 * realised.covariance.max())
    assert torch.allclose(second.mean, realised.mean, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["conv2d-reflect", "conv1d"])
def test_statistics_of_branches_are_those_of_what_they_see(kind):
    layer, inputs, statistics = prepared(kind)
    chain = Recipe.parse("fire").compress(layer, statistics)
    found = branch_statistics(chain[1], chain_statistics(chain, statistics)[1])
    with torch.no_grad():
        realised = [statistics_of(branch, chain[0](inputs)) for branch in chain[1]]
    for own, seen in zip(found, realised, strict=True):
        assert own.covariance.shape == seen.covariance.shape
        assert torch.allclose(own.mean, seen.mean, rtol=0.1, atol=0.05 * float(seen.mean.abs().max()))
        assert float((own.covariance - seen.covariance).norm() / seen.covariance.norm()) < 0.1


def test_what_a_relu_leaves_of_normal_variables_is_known():
    generator = torch.Generator().manual_seed(4)
    mixing, mean = torch.randn(3, 3, generator=generator).double(), torch.tensor([0.5, -0.4, 2.0]).double()
    values = torch.randn(400_000, 3, generator=generator).double() @ mixing.T + mean
    behind = values.relu()
    covariance, middle, kept = rectified(mixing @ mixing.T, mean)
    assert torch.allclose(middle, behind.mean(0), rtol=0.01)
    assert torch.allclose(covariance.diagonal(), behind.var(0), rtol=0.02)
    assert torch.allclose(kept, (values > 0).double().mean(0), atol=0.01)
    for factor in (0.0, 1e-15, 1e15):  # without deviation it is the ReLU itself
        covariance, middle, _ = rectified(torch.zeros(3, 3), mean.float() * factor)
        assert torch.equal(middle, (mean.float() * factor).relu())
        assert not covariance.any()


@pytest.mark.parametrize("kind", ["conv2d-bare", "linear"])
def test_a_micro_mlp_loses_what_its_relu_takes_and_no_more(kind):
    layer, _, _ = prepared(kind)
    generator = torch.Generator().manual_seed(6)
    inputs = torch.randn((4000, 12) if kind == "linear" else (500, 12, 7, 7), generator=generator) + 0.5
    statistics = statistics_of(layer, inputs)
    lost = []
    for text in ("micro_mlp", "low_rank(ratio=0.5, sides=output)"):
        with torch.no_grad():
            wanted, found = layer(inputs), Recipe.parse(text).compress(layer, statistics)(inputs)
        lost.append(float(F.mse_loss(found, wanted) / wanted.var()))
    assert lost[1] < lost[0] < lost[1] + 0.01


@pytest.mark.parametrize("kind", ["conv2d", "conv1d"])
def test_a_layer_that_is_a_fire_block_is_found(kind):
    layer = layer_of(kind)
    outputs, inputs, *kernel = layer.weight.shape
    generator = torch.Generator().manual_seed(8)
    core = torch.randn(outputs, 3, *kernel, generator=generator)
    narrow = torch.randperm(outputs, generator=generator)[: outputs // 2]
    middle = core[narrow].flatten(2)[..., core[0, 0].numel() // 2].clone()
    core[narrow] = 0.0
    core[narrow, :, *(size // 2 for size in kernel)] = middle
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("os...,si->oi...", core, torch.randn(3, inputs, generator=generator)))
    module = Recipe.parse("fire(ratio=0.5)").compress(layer, prepared(kind)[2])
    lost = relative_output_error(weight_matrices(layer), effective_matrix(module), prepared(kind)[2].covariance)
    assert lost < 1e-3


@pytest.mark.parametrize("kind", ["conv2d", "conv2d-stride", "conv2d-reflect", "conv1d-same"])
def test_higher_ratios_of_a_fire_block_never_lose_more(kind):
    errors = [error_of(f"fire(ratio={ratio})", kind) for ratio in (0.3, 0.4, 0.6, 0.8)]
    assert errors == sorted(errors, reverse=True)


def test_kernels_of_groups_have_zeros_between_them():
    layer = layer_of("grouped")
    kernel = dense_kernel(layer)
    assert kernel.shape == (16, 12, 3, 3)
    assert int((kernel != 0).sum()) == layer.weight.numel()
    dense = nn.Conv2d(12, 16, 3, padding=1)
    with torch.no_grad():
        dense.weight.copy_(kernel)
        dense.bias.copy_(layer.bias)
        assert torch.allclose(dense(inputs_of("grouped")), layer(inputs_of("grouped")), atol=1e-5)


@pytest.mark.parametrize(("text", "kind"), CASES)
@pytest.mark.parametrize(("fewer_inputs", "fewer_outputs"), [(0, 0), (5, 7), (9, 15)])
def test_structures_are_priced_as_they_run_whatever_is_left_of_the_layer(text, kind, fewer_inputs, fewer_outputs):
    layer, inputs, statistics = prepared(kind)
    outputs, channels, *_ = layer.weight.shape
    cut, found = keep_inputs(layer, statistics, torch.arange(channels - fewer_inputs))
    cut, found = keep_outputs(cut, found, torch.arange(max(1, outputs - fewer_outputs)))
    seen = inputs[..., : channels - fewer_inputs] if isinstance(layer, nn.Linear) else inputs[:, fewer_inputs:]
    (technique,) = Recipe.parse(text).techniques
    module = technique.on_cut(layer, cut).compress(cut, found)
    with torch.no_grad():
        assert module(seen).shape == cut(seen).shape
    original = operations(layer, tuple(inputs.shape[1:]))
    priced = chain_of(original, Recipe.parse(text), channels - fewer_inputs, out_channels(cut), layer)
    assert priced == operations(module, tuple(seen.shape[1:]))


@pytest.mark.parametrize("kind", ["linear-tokens", "pointwise"])
def test_a_gather_is_timed_and_computes_nothing(kind):
    shape = tuple(inputs_of(kind).shape[1:])
    first, middle, last = operations(compressed("block_diagonal", kind), shape)
    assert (first.macs, last.macs) == (0, 0)
    assert middle.macs == sum(operation.macs for operation in operations(layer_of(kind), shape)) // 2
    session = onnxruntime.InferenceSession(operation_graph((first,)), providers=["CPUExecutionProvider"])
    inputs = inputs_of(kind)[:2].numpy()
    (outputs,) = session.run(None, {"input": inputs})
    axis = -1 if kind.startswith("linear") else 1
    assert not np.array_equal(outputs, inputs)
    assert np.array_equal(np.sort(outputs, axis), np.sort(inputs, axis))


@pytest.mark.parametrize(("text", "kind"), [case for case in CASES if case[1] in ("conv2d-stride", "linear")])
def test_structures_pack_with_codes_and_ranges(text, kind, tmp_path):
    layer, inputs, statistics = prepared(kind)
    model = nn.Sequential(Recipe.parse(text + INTEGER).compress(layer, statistics)).eval()
    save_packed(model, nn.Sequential(layer), tmp_path / "weights", {})
    with torch.no_grad():
        assert torch.equal(load_packed(tmp_path / "weights", nn.Sequential(layer))(inputs), model(inputs))


@pytest.mark.parametrize(("text", "kind"), EXPORTED)
@pytest.mark.parametrize("more", ["", INTEGER])
def test_structures_run_in_the_runtime(text, kind, more, tmp_path):
    layer, inputs, statistics = prepared(kind)
    model = nn.Sequential(Recipe.parse(text + more).compress(layer, statistics)).eval()
    export_onnx(model, inputs, tmp_path / "model.onnx")
    with torch.no_grad():
        expected = model(inputs)
    found = run_model(tmp_path / "model.onnx", inputs)
    assert F.mse_loss(found, expected) < 1e-4 * expected.var()


@pytest.mark.parametrize("text", ["depthwise_separable(filters=2)", "sparse_coding", "fire", "micro_mlp"])
@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e30])
def test_tiny_huge_and_zero_weights_lose_as_much_as_usual_ones(text, factor):
    kind = "linear" if text == "sparse_coding" else "conv2d"
    layer, inputs, statistics = prepared(kind)
    with torch.no_grad():
        for value in layer.parameters():
            value.mul_(factor)
    module = Recipe.parse(text).compress(layer, statistics)
    with torch.no_grad():
        assert bool(torch.isfinite(module(inputs)).all())
    lost = relative_output_error(weight_matrices(layer), effective_matrix(module), statistics.covariance)
    expected = error_of(text, kind) if factor else 0.0
    assert lost == pytest.approx(expected, rel=0.05, abs=1e-9)


@pytest.mark.parametrize(
    "text", ["low_rank(ratio=0.5)", "depthwise_separable(filters=2)", "sparse_coding", "fire", "micro_mlp"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_precisions_come_back_as_they_were(text, dtype):
    kind = "linear" if text == "sparse_coding" else "conv2d"
    layer, _, statistics = prepared(kind)
    module = Recipe.parse(text).compress(layer.to(dtype), statistics)
    assert {value.dtype for value in module.parameters()} == {dtype}
    assert error(effective_matrix(module), kind) < 1.1 * error_of(text, kind) + 1e-3


@pytest.mark.parametrize(
    ("text", "layer", "words"),
    [
        ("depthwise_separable", nn.Conv2d(8, 8, 1), "1x1"),
        ("depthwise_separable", nn.Conv2d(8, 8, 3, groups=2), "grouped"),
        ("depthwise_separable(filters=9)", nn.Conv2d(8, 64, 3), "no smaller"),
        ("depthwise_separable", nn.Linear(8, 8), "no kernel"),
        ("low_rank(sides=cp)", nn.Linear(16, 16), "no filters"),
        ("global_pool_head", nn.Conv2d(8, 8, 1), "not linear"),
        ("global_pool_head", nn.Linear(10, 8), "not several channels"),
        ("global_pool_head", nn.Linear(4, 8), "not several channels"),
        ("fire", nn.Linear(8, 8), "no kernel"),
        ("fire", nn.Conv2d(8, 8, 1), "1x1"),
        ("fire", nn.Conv2d(8, 8, 3, padding=1, groups=2), "grouped"),
        ("fire", nn.Conv2d(8, 8, (3, 2), padding=1), "3x2"),
        ("fire", nn.Conv2d(8, 8, 3), "border"),
        ("fire", nn.Conv2d(8, 8, 3, padding="valid"), "border"),
        ("fire(ratio=0.1)", nn.Conv2d(8, 8, 3, padding=1), "too few"),
        ("micro_mlp", nn.Embedding(8, 8), "neither"),
        ("micro_mlp", nn.Conv2d(8, 8, 3, groups=2), "grouped"),
        ("micro_mlp(ratio=0.1)", nn.Linear(8, 8), "too low"),
        ("sparse_coding", nn.Conv2d(8, 8, 3), "not linear"),
        ("sparse_coding", nn.Linear(2, 2), "too few"),
        ("sparse_coding(atoms=1.0)", nn.Linear(8, 8), "no smaller"),
    ],
)
def test_layers_that_gain_nothing_are_refused_with_the_reason(text, layer, words):
    assert words in Recipe.parse(text).unsupported(layer)


@pytest.mark.parametrize("kind", POINTWISE)
@pytest.mark.parametrize("blocks", [2, 4])
def test_assigned_blocks_lose_less_than_random_ones_and_those_less_than_cut_ones(kind, blocks):
    layer = layer_of(kind)
    control = compressed(f"block_diagonal(blocks={blocks}, permutation=random)", kind)
    cut = torch.where(effective_matrix(control) == 0, 0.0, weight_matrices(layer))
    errors = [
        error_of(f"block_diagonal(blocks={blocks})", kind),
        error_of(f"block_diagonal(blocks={blocks}, permutation=random)", kind),
        error(cut, kind),
    ]
    assert errors == sorted(errors)
    assert int((effective_matrix(control) != 0).sum()) == layer.weight.numel() // blocks


def test_a_pooling_head_is_exact_where_all_places_count_alike():
    layer = nn.Linear(24, 7).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(7, 6, generator=torch.Generator().manual_seed(2)).repeat_interleave(4, 1))
    module = Recipe.parse("global_pool_head(positions=4)").compress(layer, LayerStatistics.white(layer))
    inputs = torch.randn(5, 24, generator=torch.Generator().manual_seed(3))
    assert weight_of(module[1]).shape == (7, 6)
    with torch.no_grad():
        assert torch.allclose(module(inputs), layer(inputs), atol=1e-5)
        assert torch.allclose(module[0](inputs), inputs.view(5, 6, 4).mean(2), atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "linear-tokens"])
def test_a_fitted_head_loses_less_than_the_mean_of_the_weights(kind):
    layer = layer_of(kind)
    plain = weight_matrices(layer).view(1, -1, 3, 4).mean(3).repeat_interleave(4, 2)
    assert error_of("global_pool_head", kind) < error(plain, kind)


def test_hidden_blocks_are_found():
    generator = torch.Generator().manual_seed(3)
    weight = torch.block_diag(*torch.randn(4, 5, 6, generator=generator))
    layer = nn.Linear(24, 20).eval()
    with torch.no_grad():
        layer.weight.copy_(weight[torch.randperm(20, generator=generator)][:, torch.randperm(24, generator=generator)])
    module = Recipe.parse("block_diagonal(blocks=4)").compress(layer, LayerStatistics.white(layer))
    assert torch.allclose(effective_matrix(module)[0], layer.weight, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *(("block_diagonal(blocks=4)", kind) for kind in ("linear-tokens", "pointwise")),
        ("fire", "conv2d"),
        ("fire" + INTEGER, "conv1d"),
        ("micro_mlp", "conv2d"),
    ],
)
def test_moments_are_matched_before_the_gather(text, kind):
    layer, inputs, statistics = prepared(kind)
    module = Recipe.parse(text).compress(layer, statistics)
    model = nn.Sequential(module)
    with torch.no_grad():
        outputs, last = layer(inputs), kind.startswith("linear")
        target = moments(outputs, last)
        rows = rows_of(outputs, places_of(outputs, last, 4096), last)
        repair(model, lambda net: net(inputs), {"0": Target(target, last, rows)}, {"0": module})
        found = moments(model(inputs), kind.startswith("linear"))
        assert torch.allclose(found.mean, target.mean, atol=1e-4 if INTEGER not in text else 0.02)


@pytest.mark.parametrize(
    ("text", "kind"), [case for case in CASES if case[1] in ("linear-tokens", "pointwise", "conv1d")]
)
def test_the_runtime_takes_the_price_of_every_structure(text, kind):
    chain = operations(compressed(text, kind), tuple(inputs_of(kind).shape[1:]))
    session = onnxruntime.InferenceSession(operation_graph(chain), providers=["CPUExecutionProvider"])
    shape = (2, *chain[0].input_shape)
    (outputs,) = session.run(None, {"input": np.zeros(shape, np.float32)})
    assert outputs.shape == (2, *chain[-1].output_shape)


@pytest.mark.parametrize("more", ["", INTEGER])
@pytest.mark.parametrize("text", ["fire", "micro_mlp"])
def test_blocks_are_priced_by_the_graph_that_is_exported(text, more, tmp_path):
    layer, inputs, statistics = prepared("conv2d")
    module = Recipe.parse(text + more).compress(layer, statistics)
    export_onnx(nn.Sequential(module).eval(), inputs, tmp_path / "model.onnx")
    chain = operations(module, tuple(inputs.shape[1:]))
    kinds = [
        sorted(node.op_type for node in model.graph.node if node.op_type in ("Conv", "Relu", "Concat", "Gather"))
        for model in (onnx.load(tmp_path / "model.onnx"), onnx.load_from_string(operation_graph(chain)))
    ]
    assert kinds[0] == kinds[1]
    assert ("Relu" in kinds[0]) == (text == "micro_mlp" and not more)


def test_only_operations_beside_others_say_so_where_latencies_are_kept():
    chain = operations(compressed("fire", "conv2d"), (12, 7, 7))
    assert [operation.alongside for operation in chain] == [0, 0, 8, 0]
    assert [operation["alongside"] for operation in json.loads(chain_key(chain)) if "alongside" in operation] == [8]
    assert chain[2].output_shape == chain[3].input_shape == (16, 7, 7)
    assert chain[2].macs == 2 * 9 * chain[1].macs // 2


@pytest.mark.parametrize(
    "spec",
    [
        ["Branches", {"append": ["Identity", {}]}],
        ["Branches", [["Identity", {}]]],
        ["Branches", {"0": ["Rectifier", {"channels": 0}]}],
        ["Rectifier", {"channels": 1.5}],
        [["Branches"], {}],
    ],
    ids=str,
)
def test_blocks_from_a_file_that_are_none_are_refused(spec):
    with pytest.raises(FileFormatError):
        build("layer", spec, nn.Linear(4, 4), PayloadReader(b"", 100))


@pytest.mark.parametrize("order", [[0, 0], [1, 2], [], ["0"], [0.0], 3, [0, -1]])
def test_an_order_from_a_file_that_is_no_permutation_is_refused(order):
    with pytest.raises(FileFormatError):
        build_leaf("ChannelOrder", {"order": order, "axis": 1})


@pytest.mark.parametrize(
    ("text", "kind", "outputs", "inputs"),
    [
        ("low_rank(ratio=0.25)", nn.Linear(64, 48), 24, 64),
        ("low_rank(ratio=0.25)", nn.Conv2d(64, 48, 1), 48, 32),
        ("low_rank(ratio=0.4)", nn.Conv2d(24, 32, 3, stride=2), 16, 12),
        ("low_rank(ratio=0.4, sides=input)", nn.Conv2d(24, 32, 3, stride=2), 16, 24),
        ("low_rank(ratio=0.4, sides=output)", nn.Conv2d(24, 32, 3), 16, 24),
        ("low_rank(ratio=0.4, sides=cp)", nn.Conv2d(24, 32, 3, stride=2), 16, 12),
        ("sparse_coding(atoms=0.25)", nn.Linear(64, 48), 24, 64),
        ("micro_mlp(ratio=0.4)", nn.Conv2d(24, 32, 3), 16, 24),
        ("fire(ratio=0.4)", nn.Conv2d(24, 32, 3, padding=1), 16, 24),
    ],
)
def test_a_layer_that_lost_channels_keeps_its_directions(text, kind, outputs, inputs):
    (technique,) = Recipe.parse(text).techniques
    cut = rebuilt(kind, kind.weight[:outputs, :inputs], kind.bias[:outputs])
    chains = [technique.outline(kind), technique.on_cut(kind, cut).outline(cut)]
    chains.append(technique.on_cut(kind, kind).outline(kind))
    between = [[len(leaf.weight) for leaf in chain[:-1] if hasattr(leaf, "weight")] for chain in chains]
    assert between[0] == between[1] == between[2]


def test_a_layer_that_lost_more_than_its_rank_still_saves_macs():
    (technique,) = Recipe.parse("low_rank(ratio=0.6)").techniques
    whole, cut = nn.Linear(64, 64), nn.Linear(64, 8)
    chain = technique.on_cut(whole, cut).outline(cut)
    assert sum(leaf.weight.numel() for leaf in chain) < cut.weight.numel()
