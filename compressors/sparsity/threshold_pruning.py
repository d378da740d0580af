"""Sets the weights below a threshold to zero that follows from their own spread."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from plywise.compressors.recipes.hyperparameter import choice
from plywise.compressors.recipes.technique import Stage, Technique
from plywise.compressors.sparsity.pruning_mask import masked, no_weights, saliency
from plywise.compressors.statistics.leaves import each_leaf
from plywise.compressors.statistics.statistics import LayerStatistics


def spread_threshold(scores: Tensor, alpha: float) -> Tensor:
    """Returns the mean of `scores` plus `alpha` of their standard deviations, a float64 scalar, never negative."""
    values = scores.double()
    return (values.mean() + alpha * values.std(correction=0)).clamp(min=0)


@dataclass(frozen=True)
class ThresholdPruning(Technique):
    """Zeros the weights whose saliency is below the layer's mean plus alpha deviations, and refits the others.

    Departure: saliency is magnitude times the input's standard deviation; without data that is the magnitude.
    """

    name: ClassVar[str] = "threshold_pruning"
    stage: ClassVar[Stage] = Stage.SPARSITY
    summary: ClassVar[str] = "zeros that the file does not store, more of them in layers of few large weights"
    source: ClassVar[str] = "Zhao et al., Mayo, 2018, section 3 (mean-plus-deviations pruner)"

    alpha: float = choice(
        0.0, grid=(-0.5, 0.0, 0.5), low=-3.0, high=5.0, help="deviations above the mean; 0 zeros about half"
    )

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses layers without weights."""
        return no_weights(layer)

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns the layer, or each leaf of a chain, with zeros among its weights."""
        return each_leaf(layer, statistics, self._leaf)

    def _leaf(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        scores = saliency(layer, statistics)
        return masked(layer, statistics, scores >= spread_threshold(scores, self.alpha))
