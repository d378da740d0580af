"""SQLite files that several processes share, and what to do when one cannot be used."""

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from plywise.compressors.errors import FileFormatError
from plywise.env.storage.cache import tell_damaged

PATIENCE_SECONDS = 60.0
"""How long to wait for another process that writes."""

SET_ASIDE = ".damaged"
"""What a file's name ends in that cannot be used and has been begun anew."""

OTHERS_FAULT = (
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR),
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH),
)
"""Errors for which the content of a file is not to blame."""

NEWEST_FORMAT = 2
"""Of files, in bytes 18 and 19 of them (https://www.sqlite.org/fileformat.html, section 1.3.3)."""

Result = TypeVar("Result")


class DamagedFileError(FileFormatError):
    """An SQLite file cannot be read, whoever reads it."""


@contextmanager
def open_sqlite(path: Path) -> Iterator[sqlite3.Connection]:
    """Opens or creates a file; each statement is committed at once, so a kill loses nothing.

    Raises:
        FileFormatError: the file is locked, not writable or on a full disk.
        DamagedFileError: it is no SQLite file, or a damaged one.
    """
    try:
        with closing(_connected(path)) as connection:
            _kept_open(path, path.stat().st_ino, os.getpid())
            yield connection
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and not _is_damage(error, path):
            raise FileFormatError(f"{path} cannot be used ({error}); {_remedy(str(error), path)}") from error
        raise DamagedFileError(f"{path} is damaged or no file of ours ({error}); delete it") from error


def made_anew(path: Path, action: Callable[[], Result]) -> Result:
    """Returns what an action on a cached file returns; a damaged one is set aside, and the action begins a new one.

    Raises:
        FileFormatError: as `open_sqlite`.
    """
    number = _inode(path)
    try:
        return action()
    except DamagedFileError as error:
        if _inode(path) == number:  # else another process has done it already
            for part in ("", "-wal", "-shm"):  # SQLite's own files belong to it
                with suppress(FileNotFoundError):
                    os.replace(f"{path}{part}", f"{path}{SET_ASIDE}{part}")
        tell_damaged(f"{path} ({error.__cause__}; kept as {path.name}{SET_ASIDE})")
        return action()


def row_checksum(*values: Any) -> str:
    """Returns the checksum of the values in a row, which stands beside them."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=PATIENCE_SECONDS, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # A lost last row costs a measurement, not correctness.
        connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@lru_cache(maxsize=8)
def _kept_open(path: Path, inode: int, process: int) -> sqlite3.Connection:
    """A connection that is never used: whoever closes a file's last one waits for the disk, at every statement."""
    return _connected(path)


def _is_damage(error: sqlite3.OperationalError, path: Path) -> bool:
    # Python's own errors, of texts that are no UTF-8, have no code.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code == sqlite3.SQLITE_READONLY:  # so does SQLite call files of formats that are yet to come
        with path.open("rb") as file:
            return max(file.read(20)[18:], default=0) > NEWEST_FORMAT
    return code not in OTHERS_FAULT


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _remedy(complaint: str, path: Path) -> str:
    if "locked" in complaint:
        return "another process holds it: end that process, or set PLYWISE_CACHE to another folder"
    return f"make sure that {path.parent} is writable and its disk not full, or set PLYWISE_CACHE to another folder"
