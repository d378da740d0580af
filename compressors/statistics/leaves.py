"""Layers and the chains that replace them, leaf by leaf."""

from collections.abc import Callable

from torch import Tensor, nn

from plywise.compressors.modules.branches import Branches
from plywise.compressors.modules.channel_order import ChannelOrder
from plywise.compressors.modules.composition import composed, dense_kernel, whole_table
from plywise.compressors.modules.layers import weight_matrices
from plywise.compressors.modules.rectifier import Rectifier
from plywise.compressors.modules.static_quantized import StaticQuantized
from plywise.compressors.statistics.statistics import LayerStatistics, branch_statistics, chain_statistics

LeafFunction = Callable[[nn.Module, LayerStatistics], nn.Module]


def each_leaf(module: nn.Module, statistics: LayerStatistics, function: LeafFunction) -> nn.Module:
    """Returns `function(module, statistics)`, or a chain of that of each leaf with weights and its own statistics."""
    if isinstance(module, ChannelOrder | Rectifier):
        return module
    if isinstance(module, nn.Sequential):
        each = zip(module, chain_statistics(module, statistics), strict=True)
    elif isinstance(module, Branches):
        each = zip(module, branch_statistics(module, statistics), strict=True)
    else:
        return function(module, statistics)
    return type(module)(*(each_leaf(part, found, function) for part, found in each)).train(module.training)


def effective_matrix(module: nn.Module) -> Tensor:
    """Returns the weights `(groups, out / groups, features)` of the one layer that a leaf or a chain amounts to."""
    if isinstance(module, StaticQuantized):
        return effective_matrix(module.layer)
    if not isinstance(module, nn.Sequential):
        return weight_matrices(module)
    if isinstance(module[0], nn.Embedding):
        return whole_table(module)[None]
    return composed([dense_kernel(leaf) for leaf in module]).flatten(1)[None]
