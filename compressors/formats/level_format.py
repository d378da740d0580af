"""Alphabets of any values: the same levels for every output channel, times a scale of its own."""

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from plywise.compressors.errors import FileFormatError
from plywise.compressors.formats.weight_format import WeightFormat

FINEST = 4096.0
"""Levels from `distinct` are multiples of its inverse."""


@dataclass(frozen=True, eq=False)
class LevelFormat(WeightFormat):
    """`value = scale * levels[symbol]`; subclasses say what the levels are.

    Attributes:
        scale: `(out,)` or `(1,)` float32, at least 0; 0 for an output channel whose weights are all zero.
    """

    scale: Tensor

    @property
    @abstractmethod
    def levels(self) -> Tensor:
        """Values before scaling, `(count,)` float32, ascending; neighbours differ by more than a float's rounding."""

    def encode(self, weight: Tensor) -> Tensor:
        """Finds the nearest levels, `(out, ...)` int64."""
        scale = torch.where(self.scale == 0, torch.ones_like(self.scale), self.scale)
        relative = weight.double() / scale.double().view((-1,) + (1,) * (weight.dim() - 1))
        return torch.searchsorted(self._borders, relative.contiguous())

    def decode(self, symbols: Tensor) -> Tensor:
        """Looks the levels up and scales them, `(out, ...)` float32."""
        return self.levels[symbols] * self.scale.view((-1,) + (1,) * (symbols.dim() - 1))

    def scaled(self, factor: Tensor) -> Self:
        """Multiplies the scales."""
        return dataclasses.replace(self, scale=self.scale * factor)

    def tensors(self) -> Mapping[str, Tensor]:
        """The scales."""
        return {"scale": self.scale}

    @cached_property
    def _borders(self) -> Tensor:
        levels = self.levels.double()
        return (levels[1:] + levels[:-1]) / 2


def distinct(levels: Tensor) -> Tensor:
    """Returns float32 levels `(count,)`, ascending, of which neighbours differ clearly: equal ones become one."""
    ordered = ((levels * FINEST).round() / FINEST).sort().values
    different: Tensor = ordered[ordered.diff(prepend=ordered[:1] - 1) > 0]
    return different.float()


def stored_number(settings: Mapping[str, Any], key: str, low: int, high: int) -> int:
    """Returns a whole number from the settings of a stored format; raises FileFormatError where it is out of range."""
    value = settings.get(key)
    if type(value) is not int or not low <= value <= high:
        raise FileFormatError(
            f"a weight format has {key}={value!r:.60}; {low} to {high} is allowed: the file is damaged"
        )
    return value


def stored_vector(tensors: Mapping[str, Tensor], key: str) -> Tensor:
    """Returns a vector from the tensors of a stored format; raises FileFormatError where there is none."""
    value = tensors.get(key)
    if value is None or value.dim() != 1 or not value.numel():
        raise FileFormatError(f"a weight format lacks the vector {key!r}: the file is damaged")
    return value.float()


def stored_scale(tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns the scales of a stored format; raises FileFormatError where there are none or one is below 0."""
    scale = stored_vector(tensors, "scale")
    if bool((scale < 0).any()):
        least = float(scale.min())
        raise FileFormatError(f"a weight format has the scale {least:g}; it must be at least 0: the file is damaged")
    return scale
