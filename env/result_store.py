"""Figures that took long to find, kept in SQLite so that no run looks for them twice."""

import json
from pathlib import Path
from typing import Any

from plywise.env.sqlite_file import open_sqlite

TABLE = "results_1"


class ResultStore:
    """A map from text keys to JSON values in one file; each value is written at once, so a kill loses nothing.

    Several processes may share the file. Another version of Plywise uses another table in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_sqlite(self.path) as connection:
            connection.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} (key TEXT PRIMARY KEY, value TEXT)")

    def get(self, key: str) -> Any:
        """Returns the value, or None where there is none yet."""
        with open_sqlite(self.path) as connection:
            row = connection.execute(f"SELECT value FROM {TABLE} WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, value: Any) -> None:
        """Keeps a JSON value."""
        with open_sqlite(self.path) as connection:
            connection.execute(f"INSERT OR REPLACE INTO {TABLE} VALUES (?, ?)", (key, json.dumps(value)))
