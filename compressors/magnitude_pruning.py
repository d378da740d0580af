"""Sets the smallest weights of a layer to zero."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from plywise.compressors.layers import WEIGHTED, corrected_bias, weight_matrices, with_weights
from plywise.compressors.leaves import each_leaf
from plywise.compressors.statistics import LayerStatistics
from plywise.compressors.technique import Stage, Technique, choice


@dataclass(frozen=True)
class MagnitudePruning(Technique):
    """Zeros the smallest weights; the others are updated to repair the output (column-wise error feedback).

    A saliency of magnitude times the input's standard deviation (Wanda) decides: a small weight on a loud
    input matters more than a large one on a silent input.
    """

    name: ClassVar[str] = "magnitude_pruning"
    stage: ClassVar[Stage] = Stage.SPARSITY
    summary: ClassVar[str] = "zeros that the file does not store; no runtime here is faster for them"
    source: ClassVar[str] = (
        "Han et al., Learning both Weights and Connections, 2015; saliency: Sun et al., Wanda, 2024, section 3; "
        "update: Frantar and Alistarh, SparseGPT, 2023, section 3.1"
    )

    sparsity: float = choice(0.5, grid=(0.3, 0.5, 0.7), low=0.0, high=0.99, help="share of the weights set to zero")

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses layers without weights."""
        if not isinstance(layer, WEIGHTED):
            return f"{type(layer).__name__} has no weights to remove"
        return None

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns the layer, or each leaf of a chain, with zeros among its weights."""
        return each_leaf(layer, statistics, self._leaf)

    def _leaf(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        weights = weight_matrices(layer)
        deviation = statistics.covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
        saliency = (weights.abs() * (deviation + 1e-3 * deviation.mean())[:, None, :]).flatten()
        removed = saliency.argsort(stable=True)[: round(self.sparsity * saliency.numel())]
        mask = torch.ones_like(saliency, dtype=torch.bool).index_fill_(0, removed, False).view_as(weights)
        matrices = statistics.feedback(weights, lambda column: column, mask)
        return with_weights(layer, matrices, corrected_bias(layer, matrices, statistics.mean))
