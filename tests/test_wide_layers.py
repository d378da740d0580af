"""Layers of many features: what varies together is known in blocks, and what follows from that stays right."""

import pytest
import torch
from torch import nn

from plywise.compressors.modules.layers import weight_matrices
from plywise.compressors.recipes.technique import Recipe
from plywise.compressors.sparsity.sparse_fit import best_sparse_fit
from plywise.compressors.statistics import feature_blocks, statistics
from plywise.compressors.statistics.error_feedback import ErrorFeedback
from plywise.compressors.statistics.feature_blocks import FeatureBlocks
from plywise.compressors.statistics.statistics import LayerStatistics
from plywise.env.calibration import calibration, channel_importance, reconstruction, row_moments
from plywise.env.calibration.calibration import calibrate
from plywise.env.calibration.reconstruction import reconstruction_importance
from plywise.env.calibration.row_moments import RowMoments
from plywise.env.network.network import Network
from plywise.env.task.samples import labelled
from plywise.experiments.breadth import calibration_study


@pytest.fixture
def narrow(monkeypatch):
    """Takes few features for many."""
    monkeypatch.setattr(row_moments, "WIDE", 20)
    monkeypatch.setattr(row_moments, "BLOCK", 12)
    monkeypatch.setattr(feature_blocks, "WIDE", 20)
    monkeypatch.setattr(statistics, "WIDE", 20)
    monkeypatch.setattr(reconstruction, "WIDE", 20)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("channel", [1, 4, 9])
def test_blocks_hold_whole_channels_and_the_moments_of_all_rows(channel):
    rows = torch.randn(50, 2, 36, generator=torch.Generator().manual_seed(0))
    whole = RowMoments(channel)
    for part in rows.split(20):
        whole.add(part)
    size = 12 // channel * channel
    blocks = torch.arange(36) // size
    near = blocks[:, None] == blocks
    expected = torch.stack([torch.cov(rows[:, group].T, correction=0) for group in range(2)]) * near
    assert size % channel == 0
    torch.testing.assert_close(whole.covariance, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.mean, rows.mean(0))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("blocks", [True, False])
def test_feedback_by_blocks_is_that_of_the_whole(monkeypatch, blocks):
    rows = torch.randn(200, 36, generator=torch.Generator().manual_seed(1)) * torch.linspace(1, 3, 36)
    covariance = torch.cov(rows.T)
    if blocks:
        covariance = covariance * (torch.arange(36)[:, None] // 12 == torch.arange(36) // 12)
    by_blocks = ErrorFeedback.of(covariance[None])
    monkeypatch.setattr(feature_blocks, "WIDE", 10_000)
    whole = ErrorFeedback.of(covariance[None])
    assert torch.equal(by_blocks.order, whole.order)
    torch.testing.assert_close(by_blocks.spread, whole.spread, rtol=1e-4, atol=1e-5)


class Two(nn.Module):
    """Two convolutions; the second reads 8 channels at 9 positions."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 4)

    def forward(self, images):
        return self.head(self.second(self.first(images).relu()).relu().mean((2, 3)))


@pytest.mark.usefixtures("narrow")
def test_wide_layers_are_ranked_and_compressed():
    torch.manual_seed(0)
    network = Network.of(Two().eval(), torch.randn(4, 3, 8, 8))
    with torch.no_grad():
        network.modules["first"].weight[3] *= 1e-3
        network.modules["first"].bias[3] = 0.0
    found = calibrate(network, labelled(torch.randn(32, 3, 8, 8), torch.arange(32) % 4))
    covariances = {name: seen.covariance for name, seen in found.statistics.items()}
    assert float((covariances["second"] == 0).float().mean()) > 0.5
    group = next(group for group in network.groups if group.leader == "first")
    importance = reconstruction_importance(network, group, covariances)
    assert int(importance.argmin()) == 3
    for text in ("uniform_quantization(bits=4)", "low_rank(ratio=0.4)", "magnitude_pruning(sparsity=0.5)"):
        layer, seen = network.modules["second"], found.statistics["second"]
        module = Recipe.parse(text).compress(layer, seen)
        images = torch.randn(8, 8, 8, 8)
        with torch.no_grad():
            assert float((module(images) - layer(images)).square().mean()) < 0.9 * float(layer(images).var())


def test_thousands_of_features_are_compressed():
    layer = nn.Linear(3000, 16)
    rows = RowMoments()
    rows.add(torch.randn(400, 1, 3000))
    spread = torch.linspace(-3, 3, 64)
    seen = LayerStatistics(rows.covariance, rows.mean, spread, spread)
    module = Recipe.parse("uniform_quantization(bits=4)").compress(layer, seen)
    assert module.weight.unique().numel() <= 16 * 16


def _positive(features, blocks):
    """Returns a positive definite matrix of blocks of some sizes."""
    rows = torch.randn(3 * features, features, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    block = torch.arange(len(blocks)).repeat_interleave(torch.tensor(blocks))
    return torch.cov(rows.T) * (block[:, None] == block)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("blocks", [(36,), (12, 12, 12), (9, 1, 26)])
def test_what_is_done_by_blocks_is_what_the_whole_gives(blocks):
    matrix, left = _positive(36, blocks), torch.randn(5, 36, dtype=torch.float64)
    found = FeatureBlocks.of(matrix)
    assert [run.stop - run.start for run in found.runs] == list(blocks)
    torch.testing.assert_close(found.times(left, matrix), left @ matrix)
    torch.testing.assert_close(found.cholesky(matrix), torch.linalg.cholesky(matrix))
    torch.testing.assert_close(found.inverse(matrix), torch.linalg.inv(matrix))
    torch.testing.assert_close(found.solved(matrix, left.T), torch.linalg.solve(matrix, left.T))


@pytest.mark.usefixtures("narrow")
def test_blocks_count_for_all_groups_and_a_feature_that_never_varies_stands_alone():
    matrix = torch.stack([_positive(24, (12, 12)), _positive(24, (6, 18))])
    assert [run.stop for run in FeatureBlocks.of(matrix).runs] == [24]
    still = _positive(24, (12, 12))
    still[20] = still[:, 20] = 0.0
    assert FeatureBlocks.of(still).runs[0] == slice(0, 12)
    assert FeatureBlocks.of(torch.zeros(24, 24)).runs == tuple(slice(place, place + 1) for place in range(24))


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (2, 3)])
def test_statistics_behind_a_kernel_are_the_same_in_both_ways(monkeypatch, size):
    covariance, mean = _positive(36, (36,)), torch.randn(36, dtype=torch.float64)
    kernel = torch.randn(5, 4, *size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    by_matrix = statistics._moved(kernel, (3, 3), covariance, mean)
    monkeypatch.setattr(statistics, "WIDE", 20)
    for found, expected in zip(statistics._moved(kernel, (3, 3), covariance, mean), by_matrix, strict=True):
        torch.testing.assert_close(found, expected)


def test_sparse_fits_by_blocks_are_those_of_the_whole(monkeypatch):
    covariance = _positive(36, (12, 24)).float()[None]
    weights = torch.randn(1, 6, 36, generator=torch.Generator().manual_seed(4))

    def select(scores, demanded):
        return scores >= scores.flatten().quantile(0.6 * demanded)

    whole = best_sparse_fit(weights, covariance, select)
    monkeypatch.setattr(feature_blocks, "WIDE", 20)
    torch.testing.assert_close(best_sparse_fit(weights, covariance, select), whole, rtol=1e-3, atol=1e-4)


def test_wide_layers_have_fewer_rows_and_others_as_many(monkeypatch):
    asked = {}
    patches = calibration.patches

    def noted(layer, inputs, count, generator):
        asked[weight_matrices(layer).shape[2]] = count
        return patches(layer, inputs, count, generator)

    monkeypatch.setattr(calibration, "patches", noted)
    monkeypatch.setattr(calibration, "WIDE", 40)
    network = Network.of(Two().eval(), torch.randn(4, 3, 8, 8))
    calibrate(network, labelled(torch.randn(8, 3, 8, 8), torch.arange(8) % 4))
    assert asked == {27: calibration.ROWS, 72: calibration.WIDE_ROWS, 8: calibration.ROWS}


def test_distances_of_filters_by_product_are_those_one_by_one(monkeypatch):
    weight = torch.randn(16, 4, 3, 3, generator=torch.Generator().manual_seed(5))
    one_by_one = channel_importance.filter_importance(weight)["median"]
    monkeypatch.setattr(channel_importance, "MOST_DIFFERENCES", 1)
    torch.testing.assert_close(channel_importance.filter_importance(weight)["median"], one_by_one)


def test_recipes_on_one_chain_work_out_its_statistics_once():
    layer = nn.Conv2d(16, 16, 3, padding=1)
    seen = LayerStatistics.white(layer)
    chain = Recipe.parse("low_rank(ratio=0.4)").compress(layer, seen)
    assert statistics.chain_statistics(chain, seen) is statistics.chain_statistics(chain, seen)
    others = LayerStatistics.white(layer)
    assert statistics.chain_statistics(chain, seen) is not statistics.chain_statistics(chain, others)


class Flat(nn.Module):
    """A convolution whose outputs a linear layer reads at all positions: 8 channels of 9 features."""

    def __init__(self):
        super().__init__()
        self.first, self.wide = nn.Conv2d(3, 8, 3, 3), nn.Linear(72, 4)

    def forward(self, images):
        return self.wide(self.first(images).relu().flatten(1))


def test_channels_behind_which_features_fall_into_blocks_are_ranked_as_by_the_whole(monkeypatch):
    torch.manual_seed(0)
    network = Network.of(Flat().eval(), torch.randn(4, 3, 9, 9))
    covariances = {"wide": _positive(72, (36, 36)).float()[None]}
    (group,) = (group for group in network.groups if group.leader == "first")
    whole = reconstruction_importance(network, group, covariances)
    monkeypatch.setattr(reconstruction, "WIDE", 20)
    monkeypatch.setattr(feature_blocks, "WIDE", 20)
    torch.testing.assert_close(reconstruction_importance(network, group, covariances), whole)


def test_the_study_of_calibration_fills_a_row(monkeypatch):
    monkeypatch.setitem(
        calibration_study.NETWORKS, "small", (lambda: calibration_study.Flattened(8, 4, 6), (3, 12, 12))
    )
    row = calibration_study.row_of("small", 8)
    assert row.features == 32 * 9
    assert row.seconds.keys() == {"forward", "gradients", "calibration", "ranking", *calibration_study.RECIPES}
