"""Weights as signed powers of two, so that products are shifts."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from plywise.compressors.formats.logarithmic_format import LogarithmicFormat
from plywise.compressors.formats.scale_search import best_scale, largest_weights, power_of_two_above
from plywise.compressors.quantization.weight_quantizer import WeightQuantizer
from plywise.compressors.quantization.weight_rounding import rounding_choice
from plywise.compressors.recipes.hyperparameter import choice


@dataclass(frozen=True)
class PowerOfTwo(WeightQuantizer):
    """Rounds weights to zero or plus or minus a power of two; the largest power of each output channel is its own.

    Departures: the largest power is the one that loses least, not one from the largest weight; all weights are rounded
    at once, with error feedback instead of training between the steps.
    """

    name: ClassVar[str] = "power_of_two"
    summary: ClassVar[str] = (
        "smaller files, and shifts instead of products where hardware has them; coarse near the largest weights"
    )
    source: ClassVar[str] = (
        "Zhou et al., Incremental Network Quantization, 2017, section 2.1 (alphabet); Zhao et al., Mayo, 2018 (shift)"
    )

    bits: int = choice(4, grid=(5, 4, 3), low=2, high=8, help="bits of a weight")
    rounding: str = rounding_choice()

    def format_of(self, weight: Tensor, importance: Tensor) -> LogarithmicFormat:
        """Returns the format that loses least."""
        rows = weight.float().flatten(1)
        fmt = LogarithmicFormat(torch.ones(1), self.bits, steps=1)
        candidates = power_of_two_above(largest_weights(rows))[:, None] * torch.tensor([1.0, 0.5, 0.25])
        scale = best_scale(rows, importance, candidates, lambda scale: replace(fmt, scale=scale))
        return replace(fmt, scale=scale)
