"""Zeros: how many, in which pattern, at what loss; and which channels filter pruning keeps."""

import itertools

import pytest
import torch
from layer_kinds import KINDS, layer_of, prepared, statistics_of
from tiny_networks import NETWORKS, Identity, Plain, build, images, labels
from torch import nn

from plywise.compressors.errors import ConfigurationError
from plywise.compressors.formats.weight_format import weight_format
from plywise.compressors.modules.layers import weight_matrices, weight_of
from plywise.compressors.recipes.technique import Recipe, Stage, make_technique, techniques
from plywise.compressors.sparsity.dynamic_surgery import DynamicSurgery
from plywise.compressors.sparsity.global_pruning import global_threshold_plan
from plywise.compressors.sparsity.sparse_fit import SparseFit, best_sparse_fit
from plywise.compressors.statistics.error_feedback import damped, relative_output_error
from plywise.compressors.statistics.leaves import effective_matrix
from plywise.compressors.statistics.statistics import CRITERIA, LayerStatistics
from plywise.env.calibration.calibration import calibrate
from plywise.env.network.network import Network
from plywise.env.task.samples import labelled

SPARSE = [technique for kind in techniques().values() if kind.stage == Stage.SPARSITY for technique in kind.grid()]
ACCEPTED = [(t, kind) for t, kind in itertools.product(SPARSE, KINDS) if t.unsupported(layer_of(kind)) is None]


def error_of(technique, kind):
    layer, _, statistics = prepared(kind)
    after = weight_matrices(technique.compress(layer, statistics))
    return relative_output_error(weight_matrices(layer), after, statistics.covariance)


def zeros_of(technique, kind):
    layer, _, statistics = prepared(kind)
    return weight_of(technique.compress(layer, statistics)) == 0


# Zeros and their patterns


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["magnitude_pruning", "optimal_brain"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.77])
def test_zeros_are_as_many_as_named(name, sparsity, kind):
    zeros = zeros_of(make_technique(name, {"sparsity": sparsity}), kind)
    assert int(zeros.sum()) == round(sparsity * zeros.numel())


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (4, 8), (1, 4), (3, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pattern_holds_in_every_run_of_input_channels(kind, keep, of):
    technique = make_technique("nm_sparsity", {"keep": keep, "of": of})
    if technique.unsupported(layer_of(kind)) is not None:
        assert weight_of(layer_of(kind)).shape[1] <= keep
        return
    zeros = zeros_of(technique, kind)
    runs = zeros.flatten(2).split(of, dim=1) if zeros.dim() > 2 else zeros.split(of, dim=1)
    for run in runs:
        assert bool(((~run).sum(1) == min(keep, run.shape[1])).all())


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
@pytest.mark.parametrize(("block", "along"), [(4, "outputs"), (8, "outputs"), (4, "inputs"), (5, "inputs")])
@pytest.mark.parametrize("kind", ["conv1d", "conv2d", "conv2d-stride", "grouped", "linear", "linear-tokens"])
def test_blocks_are_whole(kind, block, along, sparsity):
    technique = make_technique("block_sparsity", {"block": block, "along": along, "sparsity": sparsity})
    if technique.unsupported(layer_of(kind)) is not None:
        return
    layer, _, statistics = prepared(kind)
    zeros = weight_matrices(technique.compress(layer, statistics)) == 0
    zeros = zeros.transpose(1, 2) if along == "outputs" else zeros
    blocks = zeros.split(block, dim=2)
    assert all(bool((part.any(2) == part.all(2)).all()) for part in blocks)
    count = sum(part[..., 0].numel() for part in blocks)
    assert sum(int(part.all(2).sum()) for part in blocks) == round(sparsity * count)


@pytest.mark.parametrize("kind", KINDS)
def test_a_threshold_of_spread_zeros_what_lies_below_it(kind):
    layer, _, _ = prepared(kind)
    statistics = LayerStatistics.white(layer)
    size = weight_of(layer).double().abs()
    for alpha in (-0.5, 0.0, 1.0):
        found = weight_of(make_technique("threshold_pruning", {"alpha": alpha}).compress(layer, statistics)) == 0
        assert torch.equal(found, size < size.mean() + alpha * size.std(correction=0))


@pytest.mark.parametrize(("technique", "kind"), ACCEPTED, ids=str)
def test_quantising_afterwards_keeps_the_zeros(technique, kind):
    layer, _, statistics = prepared(kind)
    zeros = weight_of(technique.compress(layer, statistics)) == 0
    assert bool(zeros.any())
    both = Recipe.parse(f"{technique} + uniform_quantization(bits=4)").compress(layer, statistics)
    assert bool((weight_of(both)[zeros] == 0).all())


@pytest.mark.parametrize("technique", SPARSE, ids=str)
def test_weights_that_move_leave_the_format_that_they_had(technique):
    """Of a network that is compressed a second time: what refits weights must not pass for rounded."""
    layer, _, statistics = prepared("conv2d")
    rounded = make_technique("uniform_quantization", {"bits": 3}).compress(layer, statistics)
    after = technique.compress(rounded, statistics)
    assert weight_format(rounded) is not None
    assert weight_format(after) is None


def test_a_pattern_that_keeps_everything_is_refused():
    with pytest.raises(ConfigurationError, match="keep=4 must be less than of=4"):
        make_technique("nm_sparsity", {"keep": 4, "of": 4})


def test_surgery_takes_back_what_grew_and_leaves_the_undecided_alone():
    surgery = DynamicSurgery(alpha=0.0, off=0.5, on=1.5)
    scores = torch.tensor([0.1, 0.1, 1.0, 1.0, 1.9, 1.9])  # the threshold is their mean, 1
    mask = torch.tensor([True, False, True, False, True, False])
    assert surgery.next_mask(scores, mask).tolist() == [False, False, True, False, True, True]


# Loss


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["magnitude_pruning", "optimal_brain"])
def test_less_sparsity_never_loses_more(name, kind):
    errors = [error_of(make_technique(name, {"sparsity": share}), kind) for share in (0.0, 0.2, 0.4, 0.6, 0.8)]
    assert errors == sorted(errors)
    assert errors[0] < 1e-10 < errors[-1]


@pytest.mark.parametrize("kind", ["conv2d", "conv1d", "linear", "linear-tokens", "pointwise"])
@pytest.mark.parametrize(
    "techniques",
    [
        ["nm_sparsity(keep=3)", "nm_sparsity(keep=2)", "nm_sparsity(keep=1)"],
        [f"threshold_pruning(alpha={alpha})" for alpha in (-1.0, -0.5, 0.0, 0.5, 1.0)],
        [f"block_sparsity(sparsity={share})" for share in (0.2, 0.4, 0.6, 0.8)],
    ],
    ids=lambda texts: texts[0].split("(")[0],
)
def test_a_looser_pattern_never_loses_more(techniques, kind):
    errors = [error_of(Recipe.parse(text).techniques[0], kind) for text in techniques]
    assert errors == sorted(errors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.9])
def test_optimal_brain_never_loses_more_than_magnitude(kind, sparsity):
    errors = [
        error_of(make_technique(name, {"sparsity": sparsity}), kind) for name in ("optimal_brain", "magnitude_pruning")
    ]
    assert errors[0] <= errors[1]


def test_optimal_brain_loses_clearly_less_at_many_zeros():
    errors = [
        error_of(make_technique(name, {"sparsity": 0.7}), "conv2d") for name in ("optimal_brain", "magnitude_pruning")
    ]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("kind", ["conv2d", "grouped", "depthwise", "linear"])
def test_the_refit_solves_the_normal_equations_of_every_row(kind):
    layer, _, statistics = prepared(kind)
    weights, covariance = weight_matrices(layer), damped(statistics.covariance)
    mask = torch.rand(weights.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    found = SparseFit.of(weights, statistics.covariance).refit(mask)
    for group, row in itertools.product(range(weights.shape[0]), range(weights.shape[1])):
        keep = mask[group, row].nonzero().flatten()
        pulled = covariance[group][keep] @ weights[group, row].double()
        exact = torch.linalg.solve(covariance[group][keep][:, keep], pulled).float()
        assert torch.allclose(found[group, row, keep], exact, atol=1e-3 * float(weights.abs().max()))
    assert not found[~mask].any()


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e30])
@pytest.mark.parametrize("technique", SPARSE, ids=str)
def test_tiny_huge_and_zero_weights_keep_their_pattern(technique, factor):
    layer, inputs, statistics = prepared("conv2d")
    usual = effective_matrix(technique.compress(layer, statistics))
    with torch.no_grad():
        for value in layer.parameters():
            value.mul_(factor)
    module = technique.compress(layer, statistics)
    with torch.no_grad():
        assert bool(torch.isfinite(module(inputs)).all())
    assert torch.allclose(effective_matrix(module).double(), usual.double() * factor, rtol=0.01, atol=1e-3 * factor)


@pytest.mark.parametrize("technique", SPARSE, ids=str)
def test_silent_inputs_and_half_precision_do_no_harm(technique):
    layer, inputs, statistics = prepared("conv2d")
    silent = technique.compress(layer, statistics_of(layer, torch.zeros_like(inputs)))
    assert bool(torch.isfinite(weight_of(silent)).all())
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        module = technique.compress(layer_of("conv2d").to(dtype), statistics)
        assert weight_of(module).dtype == dtype
        assert bool(torch.isfinite(weight_of(module)).all())
        assert bool((weight_of(module) == 0).any())


def test_a_selection_of_everything_changes_nothing():
    layer, _, statistics = prepared("conv2d")
    weights = weight_matrices(layer)
    whole = best_sparse_fit(weights, statistics.covariance, lambda scores, _: torch.ones_like(scores, dtype=torch.bool))
    assert torch.allclose(whole, weights, rtol=1e-5, atol=1e-7)


# One threshold for all layers


def test_one_threshold_spares_the_layer_of_large_weights():
    small, large = nn.Linear(8, 8), nn.Linear(8, 8)
    with torch.no_grad():
        small.weight.copy_(torch.linspace(0.01, 0.64, 64).view(8, 8))
        large.weight.copy_(torch.linspace(0.33, 0.96, 64).view(8, 8))
    found = global_threshold_plan({"small": small, "large": large, "bn": nn.BatchNorm1d(8)}, density=0.5)
    shares = {name: recipe.techniques[0].sparsity for name, recipe in found.items()}
    assert set(shares) == {"small", "large"}
    assert shares["small"] > 0.7
    assert shares["small"] + shares["large"] == pytest.approx(1.0, abs=0.02)


def test_a_density_that_keeps_all_leaves_layers_as_they_are():
    found = global_threshold_plan({"fc": nn.Linear(8, 8)}, density=1.0)
    assert str(found["fc"]) == "magnitude_pruning(sparsity=0.0)"


@pytest.mark.parametrize("density", [0.0, 1.5, float("nan")])
def test_a_density_out_of_range_is_refused(density):
    with pytest.raises(ConfigurationError, match="density"):
        global_threshold_plan({"fc": nn.Linear(8, 8)}, density=density)


# Importance of channels


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_criterion_ranks_every_group(kind):
    network = Network.of(build(kind), images(4))
    statistics = calibrate(network, labelled(images(), labels())).statistics
    for group in network.groups:
        for criterion in CRITERIA:
            found = statistics[group.leader].importance[criterion]
            assert found.shape == (group.channels * group.unit,)
            assert bool(torch.isfinite(found).all())
            assert bool((found >= 0).all())
        members = [side for side in group.producers if side.module in statistics]
        firsts = torch.stack([(group.root == channel).nonzero()[0, 0] for channel in range(group.channels)])
        for criterion, side in itertools.product(CRITERIA, members):
            ours = statistics[side.module].importance[criterion][side.local]
            assert torch.equal(ours, statistics[group.leader].importance[criterion][firsts[side.root]])


def test_criteria_say_what_they_mean():
    network = Network.of(build(Plain), images(4))
    found = calibrate(network, labelled(images(), labels())).statistics["conv1"].importance
    rows = weight_of(network.modules["conv1"]).flatten(1)
    assert torch.allclose(found["l1"], rows.abs().sum(1))
    assert torch.allclose(found["l2"], rows.square().sum(1).sqrt())
    assert torch.allclose(found["median"], (rows[:, None] - rows[None]).norm(dim=2).sum(1), rtol=1e-4)


def test_random_importance_follows_the_seed():
    network, seen = Network.of(build(Identity), images(4)), labelled(images(), labels())
    first, again, other = (calibrate(network, seen, seed).statistics["stem"].importance["random"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Copies(nn.Module):
    """A hidden layer whose later channels repeat the first ones, twice as loud: each pair has one to spare."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(12, 8), nn.Linear(8, 3)
        with torch.no_grad():
            self.hidden.weight[4:] = 2.0 * self.hidden.weight[:4]
            self.hidden.bias[4:] = 2.0 * self.hidden.bias[:4]

    def forward(self, inputs):
        return self.out(torch.relu(self.hidden(inputs)))


def test_reconstruction_keeps_one_of_each_pair_of_copies():
    torch.manual_seed(0)
    model = Copies().eval()
    inputs = torch.randn(256, 12)
    network = Network.of(model, inputs[:4])
    statistics = calibrate(network, labelled(inputs, torch.randint(3, (256,)))).statistics
    kept = statistics["hidden"].importance["reconstruction"].argsort(descending=True)[:4] % 4
    assert sorted(kept.tolist()) == [0, 1, 2, 3]
