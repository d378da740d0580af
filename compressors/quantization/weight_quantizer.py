"""What all techniques that round a layer's weights to one format share."""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from plywise.compressors.formats.weight_format import WeightFormat
from plywise.compressors.modules.layers import weight_of
from plywise.compressors.quantization.weight_rounding import importance_of, quantised, without_weights
from plywise.compressors.recipes.technique import Stage, Technique
from plywise.compressors.statistics.leaves import each_leaf
from plywise.compressors.statistics.statistics import LayerStatistics


class WeightQuantizer(Technique):
    """A technique that finds a format for a layer's weights and rounds them to it.

    Attributes:
        rounding: how, as `weight_rounding.quantised` takes it; a hyperparameter that each technique declares.
    """

    stage: ClassVar[Stage] = Stage.WEIGHTS
    rounding: str

    @abstractmethod
    def format_of(self, weight: Tensor, importance: Tensor) -> WeightFormat:
        """Returns the format that fits a layer.

        Args:
            weight: of the layer, `(out, ...)`.
            importance: what an error at each weight costs, `(out, features)`.
        """

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses layers without weights."""
        return without_weights(layer)

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns the layer, or each leaf of a chain, with rounded weights and their format attached."""
        return each_leaf(layer, statistics, self._leaf)

    def _leaf(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        fmt = self.format_of(weight_of(layer), importance_of(layer, statistics))
        return quantised(layer, statistics, fmt, self.rounding)
