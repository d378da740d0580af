"""Rounding to integer codes: fast where nothing learns, with gradients where something does."""

import pytest
import torch
from torch import nn

from plywise.compressors.modules.static_quantized import ActivationRange, StaticQuantized

SPANS = [(-1.3, 2.1, 8), (0.0, 5.0, 8), (-0.7, 0.0, 8), (-3.0, 1.0, 4), (0.0, 1e-3, 2), (-1e4, 3e5, 8)]


@pytest.mark.parametrize(("low", "high", "bits"), SPANS)
def test_rounding_with_and_without_gradients_gives_the_same_values(low, high, bits):
    span = ActivationRange.spanning(low, high, bits)
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(20_000, generator=generator) * 1.5 * (high - low) + 1.25 * low - 0.25 * high
    ties = span.scale * (torch.arange(-600, 600) + 0.5)
    values = torch.cat([spread, ties, torch.zeros(1)])
    learning = span(values.clone().requires_grad_()).detach()
    assert torch.equal(span(values), learning)
    with torch.no_grad():
        assert torch.equal(span(values.clone().requires_grad_()), learning)
    assert len(learning.unique()) > 2 ** (bits - 1)


def test_gradients_pass_inside_the_range_only():
    span = ActivationRange.spanning(-1.0, 1.0)
    values = torch.tensor([-5.0, 0.3, 5.0], requires_grad=True)
    span(values).sum().backward()
    assert values.grad.tolist() == [0.0, 1.0, 0.0]


def test_rounding_leaves_its_argument_alone():
    values = torch.linspace(-2.0, 2.0, 9)
    before = values.clone()
    ActivationRange.spanning(-1.0, 1.0)(values)
    assert torch.equal(values, before)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 4, 3)), nn.ReLU()]
)
def test_a_layer_runs_between_two_roundings_and_leaves_its_inputs_alone(layer):
    before, after = ActivationRange.spanning(-1.0, 1.0), ActivationRange.spanning(0.0, 0.5, 4)
    inputs = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    copy = inputs.clone()
    with torch.no_grad():
        outputs = StaticQuantized(layer, before, after)(inputs)
        assert torch.equal(outputs, after(layer(before(copy))))
    assert torch.equal(inputs, copy)
    learning = StaticQuantized(layer, before, after)(inputs.requires_grad_())
    assert torch.equal(learning.detach(), outputs)
    learning.sum().backward()
    assert inputs.grad.abs().sum() > 0
