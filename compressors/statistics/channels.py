"""Removing channels from a layer, with the least-squares repair of what reads them."""

import dataclasses

import torch
from torch import Tensor, nn

from plywise.compressors.modules.layers import (
    CONVOLUTIONS,
    TRANSPOSED,
    bias_of,
    groups_of,
    is_depthwise,
    make_layer,
    weight_matrices,
    weight_of,
)
from plywise.compressors.statistics.error_feedback import DAMPING, damped
from plywise.compressors.statistics.feature_blocks import FeatureBlocks
from plywise.compressors.statistics.statistics import LayerStatistics

WIDE = 32
"""From this many channels on, pruning leaves multiples of `STEP`; narrower layers keep multiples of `STEP / 2`."""
STEP = 8


def kept_count(channels: int, ratio: float, unit: int = 1) -> int:
    """Returns how many channels stay when a share `ratio` is to go: int8 kernels want multiples of 8.

    Of channels that go together, `unit` of them, a multiple stays; at least one unit does.
    """
    step = STEP if channels >= WIDE else STEP // 2 if channels >= STEP else 1
    step = unit if unit >= STEP // 2 or step % unit else step
    return min(channels, max(step, step * round(channels * (1.0 - ratio) / step)))


def kept_channels(importance: Tensor, ratio: float, root: Tensor | None = None) -> Tensor:
    """Returns the sorted indices of the most important channels; smaller ratios keep supersets.

    Args:
        importance: `(channels,)`; of those that go together the sum counts.
        ratio: share that is to go.
        root: `(channels,)` equal for those that go together, such as those of an attention head, counted from 0;
            as many have each number. None where each channel stands alone.
    """
    root = torch.arange(importance.numel()) if root is None else root
    count = int(root.max()) + 1
    unit = importance.numel() // count
    order = importance.new_zeros(count).index_add_(0, root, importance).argsort(descending=True, stable=True)
    stays = torch.zeros(count, dtype=torch.bool)
    stays[order[: kept_count(importance.numel(), ratio, unit) // unit]] = True
    return stays[root].nonzero().flatten()


def keep_outputs(layer: nn.Module, statistics: LayerStatistics, keep: Tensor) -> tuple[nn.Module, LayerStatistics]:
    """Returns the layer with only the output channels `keep` (indices), and its statistics.

    A depthwise convolution, which must have one output for each input, loses the inputs as well. The importance of
    channels is not kept: it has served.
    """
    weight, bias = weight_of(layer)[keep], bias_of(layer)
    bias = None if bias is None else bias[keep]
    if is_depthwise(layer):
        new = rebuilt(layer, weight, bias, groups=keep.numel())
        statistics = dataclasses.replace(statistics, covariance=statistics.covariance[keep], mean=statistics.mean[keep])
    else:
        new = rebuilt(layer, weight, bias, groups=groups_of(layer))
    return new, dataclasses.replace(statistics, importance={})


def keep_inputs(layer: nn.Module, statistics: LayerStatistics, keep: Tensor) -> tuple[nn.Module, LayerStatistics]:
    """Returns a layer that reads only the input channels `keep`, refitted by least squares.

    The weights that stay take over what the removed ones said, as far as the inputs are correlated:
    `W' = W C[:, K] (C[K, K])^-1`, and the bias keeps the mean output. Of each group of a convolution as many stay.
    Source: He et al., Channel Pruning for Accelerating Very Deep Neural Networks (2017), section 3.1, step (ii).
    """
    channels, *kernel = weight_of(layer).shape[1:]
    groups = groups_of(layer)
    positions = statistics.mean.shape[1] // channels
    stays = torch.zeros(groups, channels, dtype=torch.bool)
    stays.view(-1)[keep] = True
    weights, shifts, covariances, means = zip(
        *(_refitted(layer, statistics, g, stays[g], positions) for g in range(groups)), strict=True
    )
    old, shift = bias_of(layer), torch.cat(shifts)
    bias = shift.float() if old is None else old.float() + shift.float()
    weight = torch.cat(weights)
    new = rebuilt(layer, weight.reshape(len(weight), keep.numel() // groups, *kernel), bias, groups)
    return new, dataclasses.replace(statistics, covariance=torch.stack(covariances), mean=torch.stack(means))


def _refitted(
    layer: nn.Module, statistics: LayerStatistics, group: int, stays: Tensor, positions: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the weights of one group of a layer for the inputs that stay, what the bias gains, and their moments."""
    feature = stays.repeat_interleave(positions).nonzero().flatten()
    covariance, mean = statistics.covariance[group], statistics.mean[group]
    matrix = weight_matrices(layer)[group].double()
    inner = covariance[feature][:, feature]
    cross = covariance.double()[:, feature]
    # A small damping keeps the solution near the old weights where the data say little.
    ridge = damped(inner[None], DAMPING)[0]
    pull = (ridge - inner.double()).diagonal()
    target = matrix @ cross + matrix[:, feature] * pull
    refitted = FeatureBlocks.of(inner).solved(ridge, target.T).T
    return refitted, matrix @ mean.double() - refitted @ mean[feature].double(), inner, mean[feature]


def rebuilt(layer: nn.Module, weight: Tensor, bias: Tensor | None, groups: int = 1) -> nn.Module:
    """Returns a layer with the settings of `layer` around another `weight`, which decides its channels and kernel."""
    if not isinstance(layer, CONVOLUTIONS + TRANSPOSED):
        return make_layer(layer, weight, bias)
    border = "output_padding" if isinstance(layer, TRANSPOSED) else "padding_mode"
    kept = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", border)}
    return make_layer(layer, weight, bias, groups=groups, **kept)
