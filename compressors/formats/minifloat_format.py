"""Weights as floats of a few bits."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from plywise.compressors.errors import FileFormatError
from plywise.compressors.formats.level_format import LevelFormat, stored_number, stored_scale


@dataclass(frozen=True, eq=False)
class MinifloatFormat(LevelFormat):
    """A sign, `exponent` bits of exponent and `mantissa` bits of fraction, with subnormal numbers, as in IEEE 754.

    Fewer than 5 exponent bits leave no room for infinities, as in OCP's formats of 4 and 6 bits; OCP's e4m3 also
    spares its largest code, 480, which is a number here. Symbols are the ranks of the values.

    Attributes:
        exponent: 2 to 8.
        mantissa: 1 to 10.
    """

    name: ClassVar[str] = "minifloat"
    exponent: int
    mantissa: int

    @property
    def bits(self) -> int:
        """Sign, exponent and mantissa."""
        return 1 + self.exponent + self.mantissa

    @cached_property
    def levels(self) -> Tensor:
        """All values, `(count,)`; the two zeros are one."""
        binades = 2**self.exponent - (self.exponent >= 5)
        code = torch.arange(binades * 2**self.mantissa)
        exponents, fraction = code >> self.mantissa, code % 2**self.mantissa
        significand = fraction + 2**self.mantissa * (exponents > 0)
        power = exponents.clamp(min=1) - (2 ** (self.exponent - 1) - 1) - self.mantissa
        positive = torch.ldexp(significand.double(), power).float()
        return torch.cat([-positive[1:].flip(0), positive])

    def settings(self) -> Mapping[str, int | float | str | bool]:
        """Bits of exponent and mantissa."""
        return {"exponent": self.exponent, "mantissa": self.mantissa}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "MinifloatFormat":
        """Checks the bits and rebuilds the format."""
        exponent, mantissa = stored_number(settings, "exponent", 2, 8), stored_number(settings, "mantissa", 1, 10)
        if not fits_16_bits(exponent, mantissa):
            raise FileFormatError(f"a minifloat of {exponent} and {mantissa} bits is not valid: the file is damaged")
        return cls(stored_scale(tensors), exponent, mantissa)


def fits_16_bits(exponent: int, mantissa: int) -> bool:
    """Whether each value is one of fp16 or one of bf16, in which runtimes hold them."""
    return exponent <= 5 or mantissa <= 7
