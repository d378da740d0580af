"""Which weights of a layer count least, and the layer without them."""

import torch
from torch import Tensor, nn

from plywise.compressors.modules.layers import WEIGHTED, corrected_bias, weight_matrices, with_weights
from plywise.compressors.sparsity.sparse_fit import SparseFit
from plywise.compressors.statistics.statistics import LayerStatistics


def saliency(layer: nn.Module, statistics: LayerStatistics) -> Tensor:
    """Returns `(groups, out / groups, features)`: each weight's magnitude times its input's standard deviation.

    A small weight on a loud input matters more than a large one on a silent input. The rows of an embedding are read
    one by one: there the square root of how often takes the deviation's place.
    Source: Sun et al., A Simple and Effective Pruning Approach for Large Language Models (Wanda), 2024, section 3.
    """
    deviation = statistics.covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    scores = weight_matrices(layer).abs() * (deviation + 1e-3 * deviation.mean())[:, None, :]
    return scores if statistics.frequency is None else scores * statistics.frequency.sqrt()[:, None]


def largest(scores: Tensor, sparsity: float) -> Tensor:
    """Returns which scores stay when the share `sparsity` of them, the smallest, goes; equal ones go in order."""
    flat = scores.flatten()
    removed = flat.argsort(stable=True)[: round(sparsity * flat.numel())]
    return torch.ones_like(flat, dtype=torch.bool).index_fill_(0, removed, False).view_as(scores)


def masked(layer: nn.Module, statistics: LayerStatistics, mask: Tensor) -> nn.Module:
    """Returns the layer with zeros where `mask` `(groups, out / groups, features)` is False, the rest refitted."""
    matrices = SparseFit.of(weight_matrices(layer), statistics.covariance).refit(mask)
    return with_weights(layer, matrices, corrected_bias(layer, matrices, statistics.mean))


def no_weights(layer: nn.Module) -> str | None:
    """Returns why a layer has nothing to set to zero, None where it has."""
    return None if isinstance(layer, WEIGHTED) else f"{type(layer).__name__} has no weights to remove"
