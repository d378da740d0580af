"""How much of what its readers compute is lost when a channel goes, and all less important ones went before it.

Channels are removed one by one, always the one whose loss the readers can best make up for: each reader is a least
squares problem on the covariance of its inputs, and removing a block of them costs `tr(W_c (P_cc)^-1 W_c^T)` with `P`
the inverse covariance of what is left. That is Optimal Brain Surgeon for blocks; the refit itself is `keep_inputs`.
Source: Hassibi and Stork, Optimal Brain Surgeon, 1993, section 3; He et al., Channel Pruning for Accelerating Very Deep
Neural Networks, 2017, section 3.1 (the aim). Departures: removal instead of LASSO, and all readers count.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from plywise.compressors.modules.layers import weight_matrices, weight_of
from plywise.compressors.statistics.error_feedback import damped
from plywise.compressors.statistics.feature_blocks import WIDE, FeatureBlocks
from plywise.env.network.channel_groups import ChannelGroup, Side
from plywise.env.network.network import Network

MOST_STEPS = 256
"""Of more channels than that, several go at a time."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads the channels, or one group of a convolution; its tensors change as channels go.

    Features of the channels come first.

    Attributes:
        weights: `(rows, features)` float64, refitted to what is left.
        inverse: `(features, features)` inverse covariance of what is left; ones on the diagonal for what went.
        size: features of each channel.
    """

    weights: Tensor
    inverse: Tensor
    size: int

    @classmethod
    def of(cls, network: Network, side: Side, covariance: Tensor, channels: int, part: int) -> "Reader | None":
        """Prepares a layer, or returns None where it reads some channels more often than others.

        Args:
            network: the layer's.
            side: the layer's inputs of the group.
            covariance: `(features, features)` of the layer's inputs.
            channels: of the group.
            part: which one of the groups of a convolution.
        """
        module = network.modules[side.module]
        inputs = weight_of(module).shape[1]
        inside = side.local // inputs == part
        local, root = side.local[inside] - part * inputs, side.root[inside]
        order = root.argsort(stable=True)
        times = torch.bincount(root, minlength=channels)
        if int(times.min()) != int(times.max()):
            return None
        positions, matrix = covariance.shape[0] // inputs, weight_matrices(module)[part]
        if covariance.shape[0] > WIDE and positions > 1:
            # What channels have in common is taken to be the same at all positions of the kernel, and nothing between
            # them (Grosse and Martens, A Kronecker-Factored Approximate Fisher Matrix, 2016, section 3.1).
            covariance = covariance.view(inputs, positions, inputs, positions).diagonal(dim1=1, dim2=3).mean(-1)
            matrix = matrix.view(-1, inputs, positions).transpose(1, 2).reshape(-1, inputs)
            positions = 1
        first = (local[order][:, None] * positions + torch.arange(positions)).flatten()
        rest = torch.ones(covariance.shape[0], dtype=torch.bool).index_fill_(0, first, False).nonzero().flatten()
        features = torch.cat([first, rest])
        weights = matrix[:, features].double()
        metric = damped(covariance[None])[0][features][:, features]
        energy = ((weights @ metric) * weights).sum()
        weights = weights / energy.clamp(min=1e-300).sqrt()
        inverse = FeatureBlocks.of(metric).inverse(metric)
        return cls(weights, inverse, int(times[0]) * positions)

    def losses(self, channels: int) -> Tensor:
        """Returns for each channel `(channels,)` the share of the output's energy that its removal costs."""
        count = channels * self.size
        blocks = self.inverse[:count, :count].view(channels, self.size, channels, self.size)
        blocks = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (channels, size, size)
        weights = self.weights[:, :count].view(-1, channels, self.size).permute(1, 2, 0)  # (channels, size, rows)
        if self.size == 1 and channels > MOST_STEPS:  # where it matters: a division takes a tenth of a solve's time
            shares: Tensor = weights[:, 0].square().sum(1) / blocks[:, 0, 0]
            return shares
        losses: Tensor = (weights * torch.linalg.solve(blocks, weights)).sum((1, 2))
        return losses

    def remove(self, channels: Tensor) -> None:
        """Takes channels (indices) away and refits the weights."""
        gone = slice(int(channels[0]) * self.size, (int(channels[0]) + 1) * self.size)
        if len(channels) > 1:
            features = (channels[:, None] * self.size + torch.arange(self.size)).flatten()
            self._remove_many(features)
            return
        near = self._near(gone)
        pull = torch.linalg.solve(self.inverse[gone, gone], self.inverse[gone, near])  # (size, features)
        self.weights[:, near] -= self.weights[:, gone] @ pull
        self.inverse[near, near] -= self.inverse[near, gone] @ pull
        self.weights[:, gone] = 0.0
        self.inverse[:, gone] = 0.0
        self.inverse[gone] = 0.0
        self.inverse[gone, gone] = torch.eye(self.size, dtype=torch.float64)

    def _near(self, gone: slice) -> slice:
        """Returns a run of features outside of which the inverse of those `gone` is zero; all where there are few."""
        if len(self.inverse) <= WIDE:
            return slice(None)
        filled = (self.inverse[gone] != 0).any(0).nonzero()
        return slice(int(filled[0]), int(filled[-1]) + 1)

    def _remove_many(self, features: Tensor) -> None:
        rows = self.inverse[features]
        pull = torch.linalg.solve(rows[:, features], rows)  # (features that go, features)
        self.weights.sub_(self.weights[:, features] @ pull)
        self.inverse.sub_(rows.T @ pull)
        self.weights[:, features] = 0.0
        self.inverse[:, features] = 0.0
        self.inverse[features] = 0.0
        self.inverse[features, features] = 1.0


def reconstruction_importance(network: Network, group: ChannelGroup, covariances: Mapping[str, Tensor]) -> Tensor:
    """Returns for each channel of the group `(channels,)` float32 the loss of removing it and all before it.

    Args:
        network: the group's.
        group: what is to be ranked.
        covariances: by layer name, `(groups, features, features)`.
    """
    sides = [side for side in group.consumers if side.module in covariances]
    found = [
        Reader.of(network, side, covariance, group.channels, part)
        for side in sides
        for part, covariance in enumerate(covariances[side.module])
    ]
    readers = [reader for reader in found if reader is not None]
    importance, lost = torch.zeros(group.channels, dtype=torch.float64), 0.0
    there = torch.ones(group.channels, dtype=torch.bool)
    at_once = -(-group.channels // MOST_STEPS)
    while bool(there.any()):
        losses = sum((reader.losses(group.channels) for reader in readers), torch.zeros_like(importance))
        chosen = torch.where(there, losses, torch.inf).argsort(stable=True)[: min(at_once, int(there.sum()))]
        importance[chosen] = lost + losses[chosen].clamp(min=0).cumsum(0)
        lost = float(importance[chosen[-1]])
        there[chosen] = False
        for reader in readers:
            reader.remove(chosen)
    return importance.float()
