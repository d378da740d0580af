"""SQLite files that several processes share, and what to do when one cannot be used."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path

from plywise.compressors.errors import FileFormatError

PATIENCE_SECONDS = 60.0
"""How long to wait for another process that writes."""


@contextmanager
def open_sqlite(path: Path) -> Iterator[sqlite3.Connection]:
    """Opens or creates a file; each statement is committed at once, so a kill loses nothing.

    Raises:
        FileFormatError: the file is locked, not writable, on a full disk or no SQLite file.
    """
    try:
        with closing(_connected(path)) as connection:
            _kept_open(path, path.stat().st_ino, os.getpid())
            yield connection
    except sqlite3.OperationalError as error:
        raise FileFormatError(f"{path} cannot be used ({error}); {_remedy(str(error), path)}") from error
    except sqlite3.DatabaseError as error:
        raise FileFormatError(f"{path} is damaged or no file of ours ({error}); delete it") from error


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


def _remedy(complaint: str, path: Path) -> str:
    if "locked" in complaint:
        return "another process holds it: end that process, or set PLYWISE_CACHE to another folder"
    return f"make sure that {path.parent} is writable and its disk not full, or set PLYWISE_CACHE to another folder"
