"""Sets the smallest weights of a layer to zero."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from plywise.compressors.recipes.hyperparameter import choice
from plywise.compressors.recipes.technique import Stage, Technique
from plywise.compressors.sparsity.pruning_mask import largest, masked, no_weights, saliency
from plywise.compressors.statistics.leaves import each_leaf
from plywise.compressors.statistics.statistics import LayerStatistics


@dataclass(frozen=True)
class MagnitudePruning(Technique):
    """Zeros the weights of least magnitude times their input's standard deviation, and refits the others exactly."""

    name: ClassVar[str] = "magnitude_pruning"
    stage: ClassVar[Stage] = Stage.SPARSITY
    summary: ClassVar[str] = "zeros that the file does not store; no runtime here is faster for them"
    source: ClassVar[str] = (
        "Han et al., Learning both Weights and Connections, 2015; saliency: Sun et al., Wanda, 2024, section 3; "
        "update: Boža, Fast and Effective Weight Update, 2024, section 3.1"
    )

    sparsity: float = choice(0.5, grid=(0.3, 0.5, 0.7), low=0.0, high=0.99, help="share of the weights set to zero")

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses layers without weights."""
        return no_weights(layer)

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns the layer, or each leaf of a chain, with zeros among its weights."""
        return each_leaf(layer, statistics, self._leaf)

    def _leaf(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        return masked(layer, statistics, largest(saliency(layer, statistics), self.sparsity))
