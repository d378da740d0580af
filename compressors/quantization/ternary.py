"""Weights of three values."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plywise.compressors.formats.codebook_format import CodebookFormat
from plywise.compressors.formats.scale_search import largest_weights
from plywise.compressors.quantization.weight_quantizer import WeightQuantizer
from plywise.compressors.quantization.weight_rounding import rounding_choice


@dataclass(frozen=True)
class Ternary(WeightQuantizer):
    """Rounds the weights of each output channel to minus s, zero or plus s.

    Departures: s is not the paper's approximation from a threshold of 0.7 mean magnitudes but the exact minimum of the
    weighted squared error: for each number of kept weights the best s is known, and the best of these is taken.
    """

    name: ClassVar[str] = "ternary"
    summary: ClassVar[str] = "files of at most 1.6 bits a weight; loses much without fine-tuning"
    source: ClassVar[str] = "Li and Liu, Ternary Weight Networks, 2016, section 2.2"

    rounding: str = rounding_choice()

    @property
    def bits(self) -> int:
        """Two; three of the four symbols occur."""
        return 2

    def format_of(self, weight: Tensor, importance: Tensor) -> CodebookFormat:
        """Returns the format that loses least."""
        rows = weight.float().flatten(1)
        unit = largest_weights(rows)
        magnitude, order = (rows.abs() / unit[:, None]).sort(1, descending=True)
        cost = importance.gather(1, order).double()
        product, total = (cost * magnitude).cumsum(1), cost.cumsum(1)
        # With the k largest kept, the best scale is product / total, and the error falls by product**2 / total.
        best = (product.square() / total).argmax(1, keepdim=True)
        scale = (product / total).gather(1, best)[:, 0].float() * unit
        return CodebookFormat(scale, 2, torch.tensor([-1.0, 0.0, 1.0]))
