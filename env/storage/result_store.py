"""Figures that took long to find, kept in SQLite so that no run looks for them twice."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plywise.env.storage.sqlite_file import open_sqlite

TABLE = "results_1"


class ResultStore:
    """A map from text keys to JSON values in one file; each value is written at once, so a kill loses nothing.

    Several processes may share the file. Another version of Plywise uses another table in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._table():
            pass

    def get(self, key: str) -> Any:
        """Returns the value, or None where there is none yet."""
        with self._table() as connection:
            row = connection.execute(f"SELECT value FROM {TABLE} WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, value: Any) -> None:
        """Keeps a JSON value."""
        with self._table() as connection:
            connection.execute(f"INSERT OR REPLACE INTO {TABLE} VALUES (?, ?)", (key, json.dumps(value)))

    @contextmanager
    def _table(self) -> Iterator[sqlite3.Connection]:
        """Opens the file with the table in it, even if somebody has deleted it meanwhile."""
        with open_sqlite(self.path) as connection:
            connection.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} (key TEXT PRIMARY KEY, value TEXT)")
            yield connection
