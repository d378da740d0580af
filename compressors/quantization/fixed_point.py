"""Weights as fixed-point numbers whose point the user sets."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plywise.compressors.formats.weight_format import UniformFormat
from plywise.compressors.quantization.weight_quantizer import WeightQuantizer
from plywise.compressors.quantization.weight_rounding import rounding_choice
from plywise.compressors.recipes.hyperparameter import choice


@dataclass(frozen=True)
class FixedPoint(WeightQuantizer):
    """Rounds weights to multiples of `2**(point - width)` in `[-2**(point-1), 2**(point-1))`; others saturate.

    One grid for the whole layer, whatever its weights: for hardware whose point cannot move.
    """

    name: ClassVar[str] = "fixed_point"
    summary: ClassVar[str] = "smaller files, products by plain integers; weights beyond the range saturate"
    source: ClassVar[str] = (
        "Courbariaux et al., Training Deep Neural Networks with Low Precision Multiplications, 2015, section 4; "
        "Zhao et al., Mayo, 2018 (width and point)"
    )

    width: int = choice(8, grid=(8, 4), low=2, high=8, help="bits of a weight")
    point: int = choice(1, grid=(1, 0), low=-32, high=32, help="bits ahead of the binary point, the sign included")
    rounding: str = rounding_choice()

    @property
    def bits(self) -> int:
        """The width."""
        return self.width

    def format_of(self, weight: Tensor, importance: Tensor) -> UniformFormat:
        """Returns the same format whatever the weights."""
        return fixed_point_format(self.width, self.point)


def fixed_point_format(width: int, point: int) -> UniformFormat:
    """Returns the alphabet of fixed-point numbers of `width` bits, `point` of them ahead of the binary point."""
    scale = torch.tensor([2.0 ** (point - width)])
    return UniformFormat(width, scale, torch.full_like(scale, 2 ** (width - 1)))
