"""Weights on a logarithmic grid."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plywise.compressors.formats.logarithmic_format import LogarithmicFormat
from plywise.compressors.formats.scale_search import best_scale, largest_weights
from plywise.compressors.quantization.weight_quantizer import WeightQuantizer
from plywise.compressors.quantization.weight_rounding import rounding_choice
from plywise.compressors.recipes.hyperparameter import choice

SHARES = torch.logspace(0.0, -2.0, 17, base=2.0)
"""Candidates of the largest level, as shares of the largest weight."""


@dataclass(frozen=True)
class Logarithmic(WeightQuantizer):
    """Rounds weights to zero or plus or minus a power of sqrt 2 or of 2, with a scale of each output channel.

    Departure: the scale is a number that loses least instead of the nearest power of the base.
    """

    name: ClassVar[str] = "logarithmic"
    summary: ClassVar[str] = "smaller files; small weights keep more precision than on a uniform grid, large ones less"
    source: ClassVar[str] = (
        "Miyashita et al., Convolutional Neural Networks using Logarithmic Data Representation, 2016, section 3"
    )

    bits: int = choice(4, grid=(5, 4, 3), low=2, high=8, help="bits of a weight")
    steps: int = choice(2, grid=(2, 1), low=1, high=2, help="levels to a factor of two: 2 is base sqrt 2, 1 is base 2")
    rounding: str = rounding_choice()

    def format_of(self, weight: Tensor, importance: Tensor) -> LogarithmicFormat:
        """Returns the format that loses least."""
        rows = weight.float().flatten(1)
        candidates = largest_weights(rows)[:, None] * SHARES
        scale = best_scale(rows, importance, candidates, lambda s: LogarithmicFormat(s, self.bits, self.steps))
        return LogarithmicFormat(scale, self.bits, self.steps)
