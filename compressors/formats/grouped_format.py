"""Uniform weights with a scale for each group of neighbouring features of an output channel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from plywise.compressors.errors import FileFormatError
from plywise.compressors.formats.level_format import stored_number
from plywise.compressors.formats.weight_format import AffineFormat, UniformFormat, positive


@dataclass(frozen=True, eq=False)
class GroupedFormat(AffineFormat):
    """Feature f of an output channel takes the scale of group `f // size`: `scale` is `(out, groups)`.

    Attributes:
        size: features in a group; the last group may have fewer.
    """

    name: ClassVar[str] = "grouped"
    size: int

    def at(self, features: Tensor) -> UniformFormat:
        """Returns the format of one weight of each output channel, that of its feature `features` `(out,)`."""
        group = (features // self.size)[:, None]
        return UniformFormat(self.width, self.scale.gather(1, group)[:, 0], self.zero_point.gather(1, group)[:, 0])

    def scaled(self, factor: Tensor) -> "GroupedFormat":
        """Multiplies the scales."""
        return GroupedFormat(self.width, self.scale * factor[:, None], self.zero_point, self.size)

    def settings(self) -> Mapping[str, int | float | str | bool]:
        """Width and group size, and whether the zero points need not be stored."""
        return {"width": self.width, "size": self.size, "symmetric": self.symmetric}

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
        return cls(width, positive(scale.float()), zero.float(), size)

    def _broadcast(self, like: Tensor) -> tuple[Tensor, Tensor]:
        group = torch.arange(like[0].numel()) // self.size
        return self.scale[:, group].reshape(like.shape), self.zero_point[:, group].reshape(like.shape)
