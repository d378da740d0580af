"""Uniform weights with a scale for each group of neighbouring features of an output channel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from plywise.compressors.errors import FileFormatError
from plywise.compressors.level_format import stored_number
from plywise.compressors.weight_format import UniformFormat, WeightFormat


@dataclass(frozen=True, eq=False)
class GroupedFormat(WeightFormat):
    """`value = scale[group] * (symbol - zero_point[group])`, where feature f lies in the group `f // size`.

    Attributes:
        width: bits of a symbol, 1 to 8.
        size: features in a group; the last group may have fewer.
        scale: `(out, groups)` float32, positive.
        zero_point: like `scale`, whole numbers in `[0, 2**width)`; `2**(width-1)` where symmetric.
    """

    name: ClassVar[str] = "grouped"
    width: int
    size: int
    scale: Tensor
    zero_point: Tensor

    @property
    def bits(self) -> int:
        """The width."""
        return self.width

    @property
    def symmetric(self) -> bool:
        """Whether zero sits in the middle of the alphabet in every group."""
        return bool((self.zero_point == 2 ** (self.width - 1)).all())

    def encode(self, weight: Tensor) -> Tensor:
        """Rounds to the nearest symbol, `(out, ...)` int64."""
        scale, zero = self._broadcast(weight)
        return (weight.float() / scale + zero).round().clamp(0, 2**self.width - 1).long()

    def decode(self, symbols: Tensor) -> Tensor:
        """Scales the symbols, `(out, ...)` float32."""
        scale, zero = self._broadcast(symbols)
        return (symbols.float() - zero) * scale

    def at(self, features: Tensor) -> UniformFormat:
        """Returns the format of one weight of each output channel, that of its feature `features` `(out,)`."""
        group = (features // self.size)[:, None]
        return UniformFormat(self.width, self.scale.gather(1, group)[:, 0], self.zero_point.gather(1, group)[:, 0])

    def scaled(self, factor: Tensor) -> "GroupedFormat":
        """Multiplies the scales."""
        return GroupedFormat(self.width, self.size, self.scale * factor[:, None], self.zero_point)

    def settings(self) -> Mapping[str, int | float | str | bool]:
        """Width and group size, and whether the zero points need not be stored."""
        return {"width": self.width, "size": self.size, "symmetric": self.symmetric}

    def tensors(self) -> Mapping[str, Tensor]:
        """The scales, and the zero points unless they are all in the middle."""
        return {"scale": self.scale} if self.symmetric else {"scale": self.scale, "zero_point": self.zero_point}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "GroupedFormat":
        """Checks the sizes and rebuilds the format."""
        width, size = stored_number(settings, "width", 1, 8), stored_number(settings, "size", 1, 2**31 - 1)
        scale = tensors.get("scale")
        if scale is None or scale.dim() != 2:
            raise FileFormatError("a grouped weight format lacks its scales: the file is damaged")
        zero = tensors.get("zero_point", torch.full_like(scale, 2 ** (width - 1)))
        if zero.shape != scale.shape:
            raise FileFormatError("a grouped weight format has zero points of another shape: the file is damaged")
        return cls(width, size, scale.float(), zero.float())

    def _broadcast(self, like: Tensor) -> tuple[Tensor, Tensor]:
        group = torch.arange(like[0].numel()) // self.size
        return self.scale[:, group].reshape(like.shape), self.zero_point[:, group].reshape(like.shape)
