"""Weights as powers of two around two centres."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from plywise.compressors.errors import FileFormatError
from plywise.compressors.formats.level_format import LevelFormat, distinct, stored_number, stored_scale, stored_vector
from plywise.compressors.formats.logarithmic_format import mirrored, power_of_half


@dataclass(frozen=True, eq=False)
class RecentralizedFormat(LevelFormat):
    """Zero, and for each centre c: `centre` and `centre +- spread * 2**-j` for j from 0 to `2**(width-2) - 2`.

    Attributes:
        width: bits of a symbol, 3 to 8.
        centres, spreads: `(2,)` float32, below 1000.
    """

    name: ClassVar[str] = "recentralized"
    width: int
    centres: Tensor
    spreads: Tensor

    @property
    def bits(self) -> int:
        """The width."""
        return self.width

    @cached_property
    def levels(self) -> Tensor:
        """At most `2**width - 1` values."""
        around = mirrored([power_of_half(j, 1) for j in range(2 ** (self.width - 2) - 1)])
        levels = (self.centres[:, None] + self.spreads[:, None] * around).flatten()
        return distinct(torch.cat([torch.zeros(1), levels]))

    def settings(self) -> Mapping[str, int | float | str | bool]:
        """The width."""
        return {"width": self.width}

    def tensors(self) -> Mapping[str, Tensor]:
        """Scales, centres and spreads."""
        return {"scale": self.scale, "centres": self.centres, "spreads": self.spreads}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "RecentralizedFormat":
        """Checks the width and the centres and rebuilds the format."""
        centres, spreads = stored_vector(tensors, "centres"), stored_vector(tensors, "spreads")
        if not centres.shape == spreads.shape == (2,) or float(torch.cat([centres, spreads]).abs().max()) >= 1000:
            raise FileFormatError("the centres of a recentralised weight format are not valid: the file is damaged")
        return cls(stored_scale(tensors), stored_number(settings, "width", 3, 8), centres, spreads)
