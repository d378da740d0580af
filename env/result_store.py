"""Figures that took long to find, kept in SQLite so that no run looks for them twice."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from plywise.compressors.errors import FileFormatError

TABLE = "results_1"


class ResultStore:
    """A map from text keys to JSON values in one file; each value is written at once, so a kill loses nothing.

    Several processes may share the file. Another version of Plywise uses another table in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as connection:
            connection.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} (key TEXT PRIMARY KEY, value TEXT)")

    def get(self, key: str) -> Any:
        """Returns the value, or None where there is none yet."""
        with self._open() as connection:
            row = connection.execute(f"SELECT value FROM {TABLE} WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, value: Any) -> None:
        """Keeps a JSON value."""
        with self._open() as connection:
            connection.execute(f"INSERT OR REPLACE INTO {TABLE} VALUES (?, ?)", (key, json.dumps(value)))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                yield connection
        except sqlite3.DatabaseError as error:
            raise FileFormatError(f"{self.path} is no usable store of results ({error}); delete it") from error
