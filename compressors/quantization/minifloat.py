"""Weights as floats of few bits: fp16, bf16, fp8 and smaller."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from plywise.compressors.errors import ConfigurationError
from plywise.compressors.formats.minifloat_format import MinifloatFormat, fits_16_bits
from plywise.compressors.formats.scale_search import best_scale, largest_weights, power_of_two_above
from plywise.compressors.quantization.weight_quantizer import WeightQuantizer
from plywise.compressors.quantization.weight_rounding import rounding_choice
from plywise.compressors.recipes.hyperparameter import choice


@dataclass(frozen=True)
class Minifloat(WeightQuantizer):
    """Rounds weights to floats: (5, 10) is fp16, (8, 7) bf16, (4, 3) and (5, 2) are fp8, (2, 1) is fp4.

    The exponent's bias is a power of two that follows the weights: of each output channel up to 8 bits, of the layer
    beyond. Departure from the standards: none of the codes is an infinity where the exponent has fewer than 5 bits.
    """

    name: ClassVar[str] = "minifloat"
    summary: ClassVar[str] = "smaller files; large and small weights keep the same relative precision"
    source: ClassVar[str] = (
        "IEEE 754; Micikevicius et al., FP8 Formats for Deep Learning, 2022, section 3; Zhao et al., Mayo, 2018"
    )

    exponent: int = choice(5, grid=(5, 8, 4, 2), low=2, high=8, help="bits of the exponent")
    mantissa: int = choice(10, grid=(10, 7, 3, 2, 1), low=1, high=10, help="bits of the fraction")
    rounding: str = rounding_choice()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not fits_16_bits(self.exponent, self.mantissa):
            raise ConfigurationError(
                f"minifloat: exponent={self.exponent} with mantissa={self.mantissa} fits no format of 16 bits; "
                "take at most 5 bits of exponent or at most 7 of mantissa"
            )

    @classmethod
    def grid(cls) -> Iterator[Self]:
        """Yields the formats that have a name: fp16, bf16, both of fp8, and fp4."""
        for exponent, mantissa in ((5, 10), (8, 7), (4, 3), (5, 2), (2, 1)):
            yield from (cls(exponent, mantissa, rounding) for rounding in ("nearest", "gptq"))

    @property
    def bits(self) -> int:
        """Sign, exponent and mantissa."""
        return 1 + self.exponent + self.mantissa

    def format_of(self, weight: Tensor, importance: Tensor) -> MinifloatFormat:
        """Returns the format that loses least."""
        fmt = MinifloatFormat(torch.ones(1), self.exponent, self.mantissa)
        rows = weight.float().flatten(1)
        if self.bits > 8:
            return replace(fmt, scale=_spanning(rows.reshape(1, -1), fmt))
        candidates = _spanning(rows, fmt)[:, None] * torch.tensor([1.0, 0.5])
        scale = best_scale(rows, importance, candidates, lambda scale: replace(fmt, scale=scale))
        return replace(fmt, scale=scale)


def _spanning(rows: Tensor, fmt: MinifloatFormat) -> Tensor:
    """Returns the least powers of two that bring each row's largest weight within the levels: `(rows,)`."""
    # Beyond these the scale itself would leave float32.
    return power_of_two_above(largest_weights(rows) / fmt.levels[-1]).clamp(2.0**-120, 2.0**120)
