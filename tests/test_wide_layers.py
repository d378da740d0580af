"""Layers of many features: what varies together is known in blocks, and what follows from that stays right."""

import pytest
import torch
from torch import nn

from plywise.compressors.recipes.technique import Recipe
from plywise.compressors.statistics import error_feedback
from plywise.compressors.statistics.error_feedback import ErrorFeedback
from plywise.compressors.statistics.statistics import LayerStatistics
from plywise.env.calibration import reconstruction, row_moments
from plywise.env.calibration.calibration import calibrate
from plywise.env.calibration.reconstruction import reconstruction_importance
from plywise.env.calibration.row_moments import RowMoments
from plywise.env.network.network import Network
from plywise.env.task.samples import labelled


@pytest.fixture
def narrow(monkeypatch):
    """Takes few features for many."""
    monkeypatch.setattr(row_moments, "WIDE", 20)
    monkeypatch.setattr(row_moments, "BLOCK", 12)
    monkeypatch.setattr(error_feedback, "WIDE", 20)
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
    monkeypatch.setattr(error_feedback, "WIDE", 10_000)
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
        layer, statistics = network.modules["second"], found.statistics["second"]
        module = Recipe.parse(text).compress(layer, statistics)
        images = torch.randn(8, 8, 8, 8)
        with torch.no_grad():
            assert float((module(images) - layer(images)).square().mean()) < 0.9 * float(layer(images).var())


def test_thousands_of_features_are_compressed():
    layer = nn.Linear(3000, 16)
    rows = RowMoments()
    rows.add(torch.randn(400, 1, 3000))
    spread = torch.linspace(-3, 3, 64)
    statistics = LayerStatistics(rows.covariance, rows.mean, spread, spread)
    module = Recipe.parse("uniform_quantization(bits=4)").compress(layer, statistics)
    assert module.weight.unique().numel() <= 16 * 16
