"""The folder of one run: claimed by it alone, and marked for as long as it is not whole."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plywise.compressors.errors import ConfigurationError

UNFINISHED = "UNFINISHED"
"""A file that stands in the folder until everything else does; the report is written last."""


def check_folder(folder: Path) -> None:
    """Makes sure that a run may write to a folder, which need not exist yet; changes nothing.

    Raises:
        ConfigurationError: if it holds a finished run or files that are not of an unfinished one, or is not writable.
    """
    if (folder / "report.json").exists():
        raise ConfigurationError(f"{folder} holds a finished run; name another folder or delete it")
    if not (folder / UNFINISHED).exists():
        check_empty(folder)
    check_writable(folder)


def check_empty(folder: Path) -> None:
    """Raises ConfigurationError where a folder is there and holds files."""
    if folder.is_dir() and any(folder.iterdir()):
        some = ", ".join(sorted(path.name for path in folder.iterdir())[:5])
        raise ConfigurationError(f"{folder} holds other files ({some}); name a new or an empty folder")


def check_writable(folder: Path) -> None:
    """Raises ConfigurationError unless files can be written to a folder, which need not exist yet."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigurationError(f"cannot write to {folder}: {nearest} is a file; name a folder")
    try:
        with tempfile.TemporaryDirectory(dir=nearest, prefix=".plywise"):
            pass
    except OSError as error:
        raise ConfigurationError(f"cannot write to {folder}: {error.strerror}; name another folder") from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps other runs out of it; a run that is killed lets go of it.

    A folder that was not there and is still empty at the end is removed again.

    Raises:
        ConfigurationError: if another run is writing to it.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(f"another run is writing to {folder}; wait for it or name another") from error
        try:
            yield
        finally:
            if new and not any(folder.iterdir()):
                folder.rmdir()
    finally:
        os.close(lock)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes a folder, marked as not whole yet, and keeps other runs out of it; where nothing comes in, no mark is left.

    Raises:
        ConfigurationError: if another run is writing to it or has finished there.
    """
    check_folder(folder)
    mark = folder / UNFINISHED
    with alone_in(folder):
        check_folder(folder)
        mark.write_text("the same command goes on from here; what is in this folder is not whole yet\n")
        try:
            yield
        finally:
            if list(folder.iterdir()) == [mark]:
                mark.unlink()
