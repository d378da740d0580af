"""Pruning that may be undone: weights leave below one threshold and come back above a higher one."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from plywise.compressors.recipes.hyperparameter import choice
from plywise.compressors.recipes.technique import Stage, Technique
from plywise.compressors.sparsity.pruning_mask import masked, no_weights, saliency
from plywise.compressors.sparsity.threshold_pruning import spread_threshold
from plywise.compressors.statistics.leaves import each_leaf
from plywise.compressors.statistics.statistics import LayerStatistics


@dataclass(frozen=True)
class DynamicSurgery(Technique):
    """Zeros weights below a threshold; fine-tuning may bring them back (splice) once they exceed a higher one.

    `compress` is the first step, with the others refitted. A fine-tuning loop keeps dense weights alongside the mask,
    runs the network on `weights * mask`, lets gradients reach all of them, and asks `next_mask` now and then.
    """

    name: ClassVar[str] = "dynamic_surgery"
    stage: ClassVar[Stage] = Stage.SPARSITY
    summary: ClassVar[str] = "zeros that the file does not store; fine-tuning may take some back for better ones"
    source: ClassVar[str] = (
        "Guo et al., Dynamic Network Surgery, 2016, section 3.2, equation 3; thresholds: Zhao et al., Mayo, 2018"
    )

    alpha: float = choice(
        0.0, grid=(0.0, 0.5), low=-3.0, high=5.0, help="deviations above the mean at which the thresholds lie"
    )
    off: float = choice(0.9, grid=(0.9,), low=0.0, high=1.0, help="share of the threshold below which a weight leaves")
    on: float = choice(1.1, grid=(1.1,), low=1.0, high=10.0, help="multiple of it above which a weight comes back")

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses layers without weights."""
        return no_weights(layer)

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns the layer, or each leaf of a chain, with zeros among its weights."""
        return each_leaf(layer, statistics, self._leaf)

    def next_mask(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Returns which weights stay after a step of training.

        Args:
            scores: `pruning_mask.saliency` (or magnitudes) of the dense weights, also of those at present masked.
            mask: boolean like `scores`, which weights stay at present.
        """
        threshold = spread_threshold(scores, self.alpha)
        return (mask & (scores >= self.off * threshold)) | (scores > self.on * threshold)

    def _leaf(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        scores = saliency(layer, statistics)
        return masked(layer, statistics, self.next_mask(scores, torch.ones_like(scores, dtype=torch.bool)))
