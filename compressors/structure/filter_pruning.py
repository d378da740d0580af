"""Removes whole output channels."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from plywise.compressors.modules.layers import WEIGHTED, groups_of, is_depthwise, out_channels
from plywise.compressors.recipes.hyperparameter import choice
from plywise.compressors.recipes.technique import Stage, Technique
from plywise.compressors.statistics.channels import keep_outputs, kept_channels
from plywise.compressors.statistics.statistics import CRITERIA, LayerStatistics


@dataclass(frozen=True)
class FilterPruning(Technique):
    """Keeps the most important output channels; layers that share or read them are cut alike and refitted."""

    name: ClassVar[str] = "filter_pruning"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    summary: ClassVar[str] = "fewer channels here and in all layers that read them: less of everything, most accuracy"
    source: ClassVar[str] = (
        "Li et al., Pruning Filters for Efficient ConvNets, 2017 (l1, l2); He et al., Filter Pruning via Geometric "
        "Median, 2019 (median); Liu et al., Network Slimming, 2017 (scale); Molchanov et al., Importance Estimation, "
        "2019, section 3.1, gate form (taylor); He et al., Channel Pruning, 2017, section 3.1 (reconstruction)"
    )

    ratio: float = choice(0.5, grid=(0.25, 0.5, 0.75), low=0.0, high=0.99, help="share of the channels removed")
    importance: str = choice("reconstruction", grid=CRITERIA, help="what ranks the channels")

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses depthwise convolutions and layers of one channel."""
        if not isinstance(layer, WEIGHTED) or isinstance(layer, nn.Embedding):
            return f"{type(layer).__name__} has no channels to remove"
        if is_depthwise(layer):
            return "the channels of a depthwise convolution follow those of its input"
        if out_channels(layer) // groups_of(layer) < 2:
            return "a layer of one channel (in each of its groups) has none to lose"
        return None

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns the layer with its most important channels; its readers are the caller's to cut.

        A convolution in groups keeps as many of each.
        """
        root, groups = statistics.root, groups_of(layer)
        if root is None and groups > 1:
            root = torch.arange(out_channels(layer)) % (out_channels(layer) // groups)
        keep = kept_channels(statistics.importance[self.importance], self.ratio, root)
        return keep_outputs(layer, statistics, keep)[0]
