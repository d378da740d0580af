"""Where the files of an image folder lie: on disk or in a zip archive."""

import hashlib
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from plywise.compressors.errors import DataError

MOST_BYTES = 1 << 28
"""Of one file, in memory: no image that can be decoded is larger."""


class ImageSource(ABC):
    """Named files that can be read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Returns the names of all files, with forward slashes, sorted."""

    @abstractmethod
    def folders(self) -> Sequence[str]:
        """Returns the names of all folders, empty ones too, likewise."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Returns the content of a file; raises DataError where it cannot be read."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns a hash of the path, the sizes and the times of change."""


class FolderSource(ImageSource):
    """Files below a folder."""

    def names(self) -> Sequence[str]:
        """Returns the names of all files, relative to the folder."""
        return sorted(path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file())

    def folders(self) -> Sequence[str]:
        """Returns the names of all folders, relative to this one."""
        return sorted(path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_dir())

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        try:
            _check_size(self.path / name, (self.path / name).stat().st_size)
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.path / name} cannot be read ({error.strerror})") from error

    def fingerprint(self) -> str:
        """Returns a hash over every file."""
        return _digest(self.path, [self.path / name for name in self.names()])


class ZipSource(ImageSource):
    """Files in a zip archive."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path} is no readable zip archive ({error}); it is empty, truncated or of another kind"
            ) from error

    def names(self) -> Sequence[str]:
        """Returns the names of all files in the archive."""
        return sorted(name for name in self._archive.namelist() if not name.endswith("/"))

    def folders(self) -> Sequence[str]:
        """Returns the names of all folders in the archive, which it need not list by themselves."""
        listed = (name.removesuffix("/") for name in self._archive.namelist() if name.endswith("/"))
        return sorted({*listed, *(str(parent) for name in self.names() for parent in PurePosixPath(name).parents)})

    def read(self, name: str) -> bytes:
        """Returns the unpacked content of a file, which never gets longer than its header says."""
        try:
            _check_size(f"{name} in {self.path}", self._archive.getinfo(name).file_size)
            with self._archive.open(name) as file:
                return file.read(MOST_BYTES)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise DataError(f"{name} in {self.path} cannot be read ({error}); download the archive again") from error

    def fingerprint(self) -> str:
        """Returns a hash of the archive's path, size and time of change."""
        return _digest(self.path, [self.path])


def open_source(path: Path) -> ImageSource:
    """Opens a folder or a zip archive; raises DataError on any other file."""
    return FolderSource(path) if path.is_dir() else ZipSource(path)


def _check_size(name: object, size: int) -> None:
    if size > MOST_BYTES:
        raise DataError(
            f"{name} has {size:,} bytes, more than the {MOST_BYTES:,} of the largest image that is read; replace it or "
            "remove it"
        )


def _digest(root: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256(str(root.resolve()).encode())
    for file in files:
        status = file.stat()
        digest.update(f"{file}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
