"""Sets whole blocks of a layer's matrix to zero."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from plywise.compressors.modules.layers import corrected_bias, weight_matrices, with_weights
from plywise.compressors.recipes.hyperparameter import choice
from plywise.compressors.recipes.technique import Stage, Technique
from plywise.compressors.sparsity.pruning_mask import largest, no_weights
from plywise.compressors.sparsity.sparse_fit import best_sparse_fit
from plywise.compressors.statistics.leaves import each_leaf
from plywise.compressors.statistics.statistics import LayerStatistics


@dataclass(frozen=True)
class BlockSparsity(Technique):
    """Zeros blocks of one column and several rows (outputs), or one row and several columns (inputs).

    Columns are in the order of the weights: input channels, then positions of the kernel. What does not fill a block
    at the end is a block as well. Which blocks go is chosen together with the refit of the rest.
    """

    name: ClassVar[str] = "block_sparsity"
    stage: ClassVar[Stage] = Stage.SPARSITY
    summary: ClassVar[str] = "zeros in runs, for runtimes with block-sparse kernels; more loss than single zeros"
    source: ClassVar[str] = (
        "Joseph et al., Condensa, 2020, section 3 (BlockPrune); Boža, Fast and Effective Weight Update, 2024, "
        "section 3.3 (choice and update)"
    )

    sparsity: float = choice(0.5, grid=(0.5,), low=0.0, high=0.99, help="share of the blocks set to zero")
    block: int = choice(4, grid=(4, 8), low=2, high=64, help="weights in a block")
    along: str = choice("outputs", grid=("outputs", "inputs"), help="whether a block spans outputs or inputs")

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses layers without weights, embeddings and matrices smaller than a block."""
        if isinstance(layer, nn.Embedding):
            return "an embedding picks rows instead of multiplying blocks"
        reason = no_weights(layer)
        if reason is not None:
            return reason
        rows, columns = weight_matrices(layer).shape[1:]
        span = rows if self.along == "outputs" else columns
        return f"its matrix has {span} {self.along}, fewer than a block" if span < self.block else None

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns the layer, or each leaf of a chain, with whole blocks of zeros."""
        return each_leaf(layer, statistics, self._leaf)

    def _leaf(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        def select(scores: Tensor, demanded: float) -> Tensor:
            lines = scores.transpose(1, 2) if self.along == "outputs" else scores  # blocks run along the last dimension
            size = lines.shape[2]
            padded = F.pad(lines.square(), (0, -size % self.block))
            blocks = padded.reshape(*lines.shape[:2], -1, self.block).sum(3)
            stays = largest(blocks, self.sparsity * demanded).repeat_interleave(self.block, dim=2)[..., :size]
            return stays.transpose(1, 2) if self.along == "outputs" else stays

        matrices = best_sparse_fit(weight_matrices(layer), statistics.covariance, select)
        return with_weights(layer, matrices, corrected_bias(layer, matrices, statistics.mean))
