"""Weights as entries of a stored table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from plywise.compressors.errors import FileFormatError
from plywise.compressors.formats.level_format import LevelFormat, stored_number, stored_scale, stored_vector


@dataclass(frozen=True, eq=False)
class CodebookFormat(LevelFormat):
    """Levels that lie in the file.

    Attributes:
        width: bits of a symbol, 1 to 8.
        entries: `(count,)` float32, ascending, at most `2**width`.
    """

    name: ClassVar[str] = "codebook"
    width: int
    entries: Tensor

    @property
    def bits(self) -> int:
        """The width."""
        return self.width

    @property
    def levels(self) -> Tensor:
        """The entries."""
        return self.entries

    def settings(self) -> Mapping[str, int | float | str | bool]:
        """The width."""
        return {"width": self.width}

    def tensors(self) -> Mapping[str, Tensor]:
        """The scales and the entries."""
        return {"scale": self.scale, "entries": self.entries}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "CodebookFormat":
        """Checks width and entries and rebuilds the format."""
        width, entries = stored_number(settings, "width", 1, 8), stored_vector(tensors, "entries")
        if len(entries) > 2**width or not bool((entries.diff() > 0).all()):
            raise FileFormatError(
                f"a codebook of {len(entries)} levels for {width} bits is not valid: the file is damaged"
            )
        return cls(stored_scale(tensors), width, entries)
