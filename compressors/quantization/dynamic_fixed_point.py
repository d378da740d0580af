"""Weights as fixed-point numbers whose point follows the layer."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from plywise.compressors.formats.scale_search import SMALLEST, power_of_two_above
from plywise.compressors.formats.weight_format import UniformFormat
from plywise.compressors.quantization.fixed_point import fixed_point_format
from plywise.compressors.quantization.weight_quantizer import WeightQuantizer
from plywise.compressors.quantization.weight_rounding import rounding_choice
from plywise.compressors.recipes.hyperparameter import choice


@dataclass(frozen=True)
class DynamicFixedPoint(WeightQuantizer):
    """Fixed-point weights with the lowest point at which at most a share `overflow_rate` saturates, one for the layer.

    Departure: the point is set once from the trained weights, not moved step by step during training.
    """

    name: ClassVar[str] = "dynamic_fixed_point"
    summary: ClassVar[str] = "smaller files, products by plain integers; one power of two as scale for the layer"
    source: ClassVar[str] = (
        "Courbariaux et al., Training Deep Neural Networks with Low Precision Multiplications, 2015, section 5 "
        "(overflow rate); Zhao et al., Mayo, 2018"
    )

    width: int = choice(8, grid=(8, 6, 4), low=2, high=8, help="bits of a weight")
    overflow_rate: float = choice(0.0, grid=(0.0, 0.01), low=0.0, high=0.5, help="share of weights that may saturate")
    rounding: str = rounding_choice()

    @property
    def bits(self) -> int:
        """The width."""
        return self.width

    def format_of(self, weight: Tensor, importance: Tensor) -> UniformFormat:
        """Returns the format of the lowest point that saturates few enough."""
        return fixed_point_format(self.width, self._point(weight))

    def _point(self, weight: Tensor) -> int:
        ordered = weight.float().abs().flatten().sort(descending=True).values
        largest = ordered[min(int(self.overflow_rate * len(ordered)), len(ordered) - 1)]
        return 1 + int(power_of_two_above(largest.clamp(min=SMALLEST)).log2())
