"""Sets weights to zero in a pattern that sparse tensor cores read: n of every m input channels stay."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.compressors.errors import ConfigurationError
from plywise.compressors.modules.layers import corrected_bias, weight_matrices, weight_of, with_weights
from plywise.compressors.recipes.hyperparameter import choice
from plywise.compressors.recipes.technique import Stage, Technique
from plywise.compressors.sparsity.pruning_mask import no_weights
from plywise.compressors.sparsity.sparse_fit import best_sparse_fit
from plywise.compressors.statistics.leaves import each_leaf
from plywise.compressors.statistics.statistics import LayerStatistics


@dataclass(frozen=True)
class NmSparsity(Technique):
    """Keeps at most `keep` of every `of` consecutive input channels, at each position of the kernel and each output.

    A last, shorter run keeps at most as many: filled up with zeros, it fits the pattern. Which ones stay is chosen
    together with the refit of the rest.
    """

    name: ClassVar[str] = "nm_sparsity"
    stage: ClassVar[Stage] = Stage.SPARSITY
    summary: ClassVar[str] = "2:4 and 4:8 zeros: fast on sparse tensor cores; here they save storage only"
    source: ClassVar[str] = (
        "Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, section 3 (pattern); "
        "Boža, Fast and Effective Weight Update, 2024, section 3.3 (choice and update)"
    )

    keep: int = choice(2, grid=(2, 4), low=1, high=31, help="input channels that stay of each run")
    of: int = choice(4, grid=(4, 8), low=2, high=32, help="input channels in a run")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep >= self.of:
            raise ConfigurationError(f"{self.name}: keep={self.keep} must be less than of={self.of}")

    @classmethod
    def grid(cls) -> Iterator[Self]:
        """Yields 2:4 and 4:8."""
        return (cls(keep, of) for keep, of in ((2, 4), (4, 8)))

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses layers without weights and those of too few input channels for a zero."""
        reason = no_weights(layer)
        if reason is None and weight_of(layer).shape[1] <= self.keep:
            reason = f"each output reads {weight_of(layer).shape[1]} input channels, and {self.keep} of them may stay"
        return reason

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns the layer, or each leaf of a chain, with the pattern of zeros."""
        return each_leaf(layer, statistics, self._leaf)

    def _leaf(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        channels = weight_of(layer).shape[1]

        def select(scores: Tensor, demanded: float) -> Tensor:
            keep = self.of - round((self.of - self.keep) * demanded)
            groups, rows, features = scores.shape
            columns = scores.view(groups, rows, channels, features // channels).transpose(2, 3)
            padded = F.pad(columns, (0, -channels % self.of), value=-1.0)
            runs = padded.reshape(*columns.shape[:3], -1, self.of)  # (groups, rows, positions, runs, of)
            best = runs.argsort(dim=4, descending=True, stable=True)[..., :keep]
            stays = torch.zeros(runs.shape, dtype=torch.bool).scatter_(4, best, True)
            return stays.flatten(3)[..., :channels].transpose(2, 3).reshape(scores.shape)

        matrices = best_sparse_fit(weight_matrices(layer), statistics.covariance, select)
        return with_weights(layer, matrices, corrected_bias(layer, matrices, statistics.mean))
