"""Weights of two values."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plywise.compressors.formats.codebook_format import CodebookFormat
from plywise.compressors.formats.scale_search import largest_weights
from plywise.compressors.quantization.weight_quantizer import WeightQuantizer
from plywise.compressors.quantization.weight_rounding import rounding_choice


@dataclass(frozen=True)
class Binary(WeightQuantizer):
    """Rounds the weights of each output channel to minus s or plus s.

    s is the mean magnitude, which has the least squared error; departure: the mean is weighted by the inputs' variance.
    There is no zero, so no recipe can have it behind a technique that makes zeros.
    """

    name: ClassVar[str] = "binary"
    summary: ClassVar[str] = "files of one bit a weight; a network rarely survives it without fine-tuning"
    source: ClassVar[str] = "Rastegari et al., XNOR-Net, 2016, section 3.1"

    keeps_zeros: ClassVar[bool] = False

    rounding: str = rounding_choice()

    @property
    def bits(self) -> int:
        """One."""
        return 1

    def format_of(self, weight: Tensor, importance: Tensor) -> CodebookFormat:
        """Returns the format that loses least."""
        rows = weight.float().flatten(1)
        unit = largest_weights(rows)
        mean = ((rows.abs() / unit[:, None]) * importance).sum(1) / importance.sum(1)
        return CodebookFormat(mean * unit, 1, torch.tensor([-1.0, 1.0]))
