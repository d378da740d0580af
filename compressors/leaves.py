"""Applies a function to a layer, or to each leaf of the chain that replaced it."""

from collections.abc import Callable

from torch import nn

from plywise.compressors.statistics import LayerStatistics, chain_statistics

LeafFunction = Callable[[nn.Module, LayerStatistics], nn.Module]


def each_leaf(module: nn.Module, statistics: LayerStatistics, function: LeafFunction) -> nn.Module:
    """Returns `function(module, statistics)`, or a chain of that of each leaf with its own statistics."""
    if not isinstance(module, nn.Sequential):
        return function(module, statistics)
    each = zip(module, chain_statistics(module, statistics), strict=True)
    return nn.Sequential(*(function(leaf, found) for leaf, found in each)).train(module.training)
