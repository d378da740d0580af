"""Weights as signed powers of a fixed base."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from plywise.compressors.formats.level_format import LevelFormat, stored_number, stored_scale


@dataclass(frozen=True, eq=False)
class LogarithmicFormat(LevelFormat):
    """Zero and `+-2**(-j / steps)` for j from 0 to `2**(width-1) - 2`.

    Attributes:
        width: bits of a symbol, 2 to 8.
        steps: 1 for base 2, 2 for base sqrt 2.
    """

    name: ClassVar[str] = "logarithmic"
    width: int
    steps: int

    @property
    def bits(self) -> int:
        """The width."""
        return self.width

    @cached_property
    def levels(self) -> Tensor:
        """The powers, `(2**width - 1,)`."""
        return mirrored([power_of_half(j, self.steps) for j in range(2 ** (self.width - 1) - 1)])

    def settings(self) -> Mapping[str, int | float | str | bool]:
        """Width and steps."""
        return {"width": self.width, "steps": self.steps}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "LogarithmicFormat":
        """Checks width and steps and rebuilds the format."""
        width, steps = stored_number(settings, "width", 2, 8), stored_number(settings, "steps", 1, 2)
        return cls(stored_scale(tensors), width, steps)


def power_of_half(place: int, steps: int) -> float:
    """Returns `2**(-place / steps)` for one or two steps, the same on every machine."""
    whole, rest = divmod(place, steps)
    return math.ldexp(math.sqrt(0.5) if rest else 1.0, -whole)


def mirrored(falling: list[float]) -> Tensor:
    """Returns the values with both signs and zero between them, ascending: `(2 * n + 1,)` float32."""
    values = torch.tensor(falling)
    return torch.cat([-values, torch.zeros(1), values.flip(0)])
