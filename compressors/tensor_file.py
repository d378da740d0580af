"""Tensors with a header of JSON in one safetensors file, which is whole or refused; reading executes no code."""

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as arrays
from safetensors import torch as tensors

from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import FileFormatError

_OURS = "plywise"
"""The one entry of the metadata: with several, their order and so the bytes would differ from call to call."""

_DAMAGE = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error)
"""What parsing such a file may raise."""


@dataclass(frozen=True)
class TensorFile:
    """One kind of file.

    Attributes:
        format: name and version of what is in it; a file of another one is refused.
        remedy: what to do about a file that cannot be used, for the message.
        library: whose tensors go in and come out.
    """

    format: str
    remedy: str
    library: Literal["numpy", "torch"] = "numpy"

    def content(self, values: Mapping[str, Any], header: Mapping[str, Any]) -> bytes:
        """Returns the bytes of a file; `header` holds JSON values."""
        save: Callable[..., bytes] = arrays.save if self.library == "numpy" else tensors.save
        dense = {name: _contiguous(value) for name, value in values.items()}
        ours = {"format": self.format, "header": json.loads(json.dumps(header))}
        ours["sha256"] = _checksum(ours, *_split(save(dense)))
        return save(dense, {_OURS: json.dumps(ours)})

    def write(self, path: Path, values: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        """Writes a file, atomically."""
        write_atomically(path, self.content(values, header))

    def read(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the tensors and the header of a file.

        Raises:
            FileFormatError: it is missing, damaged in any bit, or of another kind or version.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise FileFormatError(f"{path} is missing; {self.remedy}") from None
        except OSError as error:
            raise FileFormatError(f"{path} cannot be read ({error.strerror}); {self.remedy}") from error
        try:
            return self._parsed(path, content)
        except _DAMAGE as error:
            raise FileFormatError(f"{path} is damaged ({error!s:.100}); {self.remedy}") from error

    def _parsed(self, path: Path, content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
        load: Callable[[bytes], dict[str, Any]] = arrays.load if self.library == "numpy" else tensors.load
        described, data = _split(content)
        ours = json.loads(described.pop("__metadata__", {}).get(_OURS, "{}"))
        if ours.get("format") != self.format:
            given = ours.get("format", "something else")
            raise FileFormatError(f"{path} holds {given!s:.40}, not {self.format}; {self.remedy}")
        if ours.pop("sha256", None) != _checksum(ours, described, data):
            raise ValueError("its checksum does not fit")
        return load(content), ours["header"]


def _contiguous(value: Any) -> Any:
    return np.ascontiguousarray(value) if isinstance(value, np.ndarray | np.generic) else value.contiguous()


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Returns what a safetensors file says about itself, and its data."""
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _checksum(ours: Mapping[str, Any], described: Mapping[str, Any], data: bytes) -> str:
    digest = hashlib.sha256(json.dumps([ours, described], sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()
