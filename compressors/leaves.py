"""Layers and the chains that replace them, leaf by leaf."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from plywise.compressors.layers import is_pointwise, weight_matrices, weight_of
from plywise.compressors.static_quantized import StaticQuantized
from plywise.compressors.statistics import LayerStatistics, chain_statistics

LeafFunction = Callable[[nn.Module, LayerStatistics], nn.Module]


def each_leaf(module: nn.Module, statistics: LayerStatistics, function: LeafFunction) -> nn.Module:
    """Returns `function(module, statistics)`, or a chain of that of each leaf with its own statistics."""
    if not isinstance(module, nn.Sequential):
        return function(module, statistics)
    each = zip(module, chain_statistics(module, statistics), strict=True)
    return nn.Sequential(*(function(leaf, found) for leaf, found in each)).train(module.training)


def effective_matrix(module: nn.Module) -> Tensor:
    """Returns the weights `(groups, out / groups, features)` of the one layer that a leaf or a chain amounts to."""
    if isinstance(module, StaticQuantized):
        return effective_matrix(module.layer)
    if not isinstance(module, nn.Sequential):
        return weight_matrices(module)
    leaves = [leaf.layer if isinstance(leaf, StaticQuantized) else leaf for leaf in module]
    positions = max(weight_of(leaf)[0, 0].numel() for leaf in leaves)
    product: Tensor | None = None
    for leaf in leaves:
        matrix = weight_of(leaf).float().flatten(1)
        if is_pointwise(leaf) and positions > 1:
            matrix = torch.kron(matrix.contiguous(), torch.eye(positions))
        else:
            positions = 1
        product = matrix if product is None else matrix @ product
    assert product is not None, "an empty chain replaces no layer"
    return product[None]
