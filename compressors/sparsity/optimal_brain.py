"""Sets those weights of a layer to zero whose loss the others can make up for."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from plywise.compressors.modules.layers import corrected_bias, weight_matrices, with_weights
from plywise.compressors.recipes.hyperparameter import choice
from plywise.compressors.recipes.technique import Stage, Technique
from plywise.compressors.sparsity.magnitude_pruning import MagnitudePruning
from plywise.compressors.sparsity.pruning_mask import largest, no_weights
from plywise.compressors.sparsity.sparse_fit import best_sparse_fit, least_error
from plywise.compressors.statistics.leaves import each_leaf
from plywise.compressors.statistics.statistics import LayerStatistics


@dataclass(frozen=True)
class OptimalBrain(Technique):
    """Chooses zeros and refits the rest together, for the least output error; never worse than magnitude pruning.

    The surgeon's problem is solved by alternating directions rather than weight by weight (see `sparse_fit`).
    """

    name: ClassVar[str] = "optimal_brain"
    stage: ClassVar[Stage] = Stage.SPARSITY
    summary: ClassVar[str] = "as magnitude_pruning with less loss at many zeros; some ten times slower to apply"
    source: ClassVar[str] = (
        "Hassibi and Stork, Optimal Brain Surgeon, 1993 (problem); "
        "Boža, Fast and Effective Weight Update, 2024, section 3.3 (solution)"
    )

    sparsity: float = choice(0.5, grid=(0.5, 0.7), low=0.0, high=0.99, help="share of the weights set to zero")

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses layers without weights and embeddings."""
        if isinstance(layer, nn.Embedding):
            return "a row of an embedding is read as it is, so no weight can make up for another: use magnitude_pruning"
        return no_weights(layer)

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns the layer, or each leaf of a chain, with zeros among its weights."""
        return each_leaf(layer, statistics, self._leaf)

    def _leaf(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        def select(scores: Tensor, demanded: float) -> Tensor:
            return largest(scores, self.sparsity * demanded)

        weights = weight_matrices(layer)
        plain = weight_matrices(MagnitudePruning(self.sparsity).compress(layer, statistics))
        found = best_sparse_fit(weights, statistics.covariance, select)
        matrices = least_error(weights, statistics.covariance, (plain, found))
        return with_weights(layer, matrices, corrected_bias(layer, matrices, statistics.mean))
