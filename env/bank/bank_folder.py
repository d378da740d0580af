"""Compressed layers as files, so that another run or process need not compress them again."""

import hashlib
import os
import shutil
import warnings
from pathlib import Path
from typing import Self

from torch import nn

from plywise.compressors.errors import FileFormatError, ModelError
from plywise.compressors.packing.packed_file import load_packed, save_packed
from plywise.env.storage.cache import cache_folder, tell_damaged

CEILING = 1 << 30
"""Bytes of files in a folder; what is made beyond that is not stored."""

ALL_CEILING = 8 << 30
"""Bytes of the files in all folders of the cache: each change of the code begins new ones, and nobody opens the old."""


class BankFolder:
    """Packed files, each written whole, under a hash of what they hold; processes may share the folder.

    Reading ResNet-20's layers takes a tenth to a sixtieth of the time that compressing them takes.
    """

    def __init__(self, folder: Path) -> None:
        """Uses a folder of its own for everything that decides entries: network, calibration, seed and code."""
        self._folder = folder
        self._used = _size(folder)

    @classmethod
    def cached(cls, key: str) -> Self:
        """Opens the folder of a key in the cache; before a new one is begun, those that nobody opens make room."""
        folder = cache_folder("bank", key)
        os.utime(folder)
        if not any(folder.iterdir()):
            _make_room(folder, ALL_CEILING - CEILING)
        return cls(folder)

    def get(self, key: str, layer: nn.Module) -> nn.Module | None:
        """Returns the entry of a key, bit for bit, or None where there is none or its file is damaged.

        Args:
            key: names layer, recipe and what is pruned around it.
            layer: the original layer.
        """
        path = self._path(key)
        if not path.exists():
            return None
        try:
            return load_packed(path, layer).requires_grad_(False)  # as what is made here
        except FileFormatError:
            tell_damaged(str(path))
            return None  # made again, and written over

    def put(self, key: str, layer: nn.Module, module: nn.Module) -> None:
        """Stores an entry, unless the folder is full or no file can hold the module; warns where the disk is."""
        if self._used < CEILING:
            try:
                self._used += save_packed(module, layer, self._path(key), {})
            except ModelError:
                return  # a module of someone else's making
            except OSError as error:  # the search needs no file: the layer is in memory
                self._used = CEILING
                warnings.warn(
                    f"compressed layers are not kept for other runs: {error.strerror}: {self._folder}; make room, or "
                    "set PLYWISE_CACHE to another folder",
                    stacklevel=2,
                )

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def _make_room(wanted: Path, most: int) -> None:
    """Deletes the neighbours of a folder that were not opened for longest, until all take at most so many bytes."""
    used = 0
    for folder in sorted(set(wanted.parent.iterdir()) - {wanted}, key=_opened, reverse=True):
        used += _size(folder)
        if used > most:
            shutil.rmtree(folder, ignore_errors=True)


def _opened(folder: Path) -> float:
    return _stat(folder, "st_mtime")


def _size(folder: Path) -> int:
    return int(sum(_stat(path, "st_size") for path in folder.glob("*.safetensors")))


def _stat(path: Path, field: str) -> float:
    """Returns a field of a file's status, 0 where another process has just deleted it."""
    try:
        return float(getattr(path.stat(), field))
    except FileNotFoundError:
        return 0.0
