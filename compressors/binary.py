"""Weights of two values."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from plywise.compressors.codebook_format import CodebookFormat
from plywise.compressors.layers import weight_of
from plywise.compressors.leaves import each_leaf
from plywise.compressors.scale_search import largest_weights
from plywise.compressors.statistics import LayerStatistics
from plywise.compressors.technique import Stage, Technique
from plywise.compressors.weight_rounding import importance_of, quantised, rounding_choice, without_weights


@dataclass(frozen=True)
class Binary(Technique):
    """Rounds the weights of each output channel to minus s or plus s.

    s is the mean magnitude, which has the least squared error; departure: the mean is weighted by the inputs' variance.
    There is no zero, so no recipe can have it behind a technique that makes zeros.
    """

    name: ClassVar[str] = "binary"
    stage: ClassVar[Stage] = Stage.WEIGHTS
    summary: ClassVar[str] = "files of one bit a weight; a network rarely survives it without fine-tuning"
    source: ClassVar[str] = "Rastegari et al., XNOR-Net, 2016, section 3.1"

    keeps_zeros: ClassVar[bool] = False

    rounding: str = rounding_choice()

    @property
    def bits(self) -> int:
        """One."""
        return 1

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses layers without weights."""
        return without_weights(layer)

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns the layer, or each leaf of a chain, with weights of two values."""
        return each_leaf(layer, statistics, self._leaf)

    def _leaf(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        return quantised(layer, statistics, _format(weight_of(layer), importance_of(layer, statistics)), self.rounding)


def _format(weight: Tensor, importance: Tensor) -> CodebookFormat:
    rows = weight.float().flatten(1)
    unit = largest_weights(rows)
    mean = ((rows.abs() / unit[:, None]) * importance).sum(1) / importance.sum(1)
    return CodebookFormat(mean * unit, 1, torch.tensor([-1.0, 1.0]))
