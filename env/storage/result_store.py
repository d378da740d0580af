"""Figures that took long to find, kept in SQLite so that no run looks for them twice."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plywise.env.storage.cache import tell_damaged
from plywise.env.storage.sqlite_file import made_anew, open_sqlite, row_checksum

TABLE = "results_2"


class ResultStore:
    """A map from text keys to JSON values in one file; each value is written at once, so a kill loses nothing.

    Several processes may share the file. Each row has a checksum: one that is damaged counts as missing, with a note,
    and a file that cannot be read is begun anew. Another version of Plywise uses another table in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        made_anew(path, self._begin)

    def get(self, key: str) -> Any:
        """Returns the value, or None where there is none yet."""
        row = made_anew(self.path, lambda: self._row(key))
        if row is None:
            return None
        value, checksum = row
        if checksum != row_checksum(key, value):
            tell_damaged(f"a figure in {self.path}")
            return None
        return json.loads(value)

    def put(self, key: str, value: Any) -> None:
        """Keeps a JSON value."""
        text = json.dumps(value)
        made_anew(self.path, lambda: self._insert(key, text))

    def _begin(self) -> None:
        with self._table():
            pass

    def _row(self, key: str) -> tuple[str, str] | None:
        with self._table() as connection:
            query = f"SELECT value, checksum FROM {TABLE} WHERE key = ?"
            row: tuple[str, str] | None = connection.execute(query, (key,)).fetchone()
            return row

    def _insert(self, key: str, text: str) -> None:
        with self._table() as connection:
            row = (key, text, row_checksum(key, text))
            connection.execute(f"INSERT OR REPLACE INTO {TABLE} VALUES (?, ?, ?)", row)
            found = connection.execute(f"SELECT 1 FROM {TABLE} WHERE key = ?", (key,)).fetchone()
            if found is None:  # SQLite does not notice an index out of order
                raise sqlite3.DatabaseError("what was written is not found")

    @contextmanager
    def _table(self) -> Iterator[sqlite3.Connection]:
        """Opens the file with the table in it, even if somebody has deleted it meanwhile."""
        with open_sqlite(self.path) as connection:
            connection.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} (key TEXT PRIMARY KEY, value TEXT, checksum TEXT)")
            yield connection
