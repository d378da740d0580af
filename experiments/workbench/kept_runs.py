"""Runs of a study that are paid for once: what one has found is kept, and where it was stopped it goes on."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plywise.env.storage.code_digest import code_digest
from plywise.env.storage.result_store import ResultStore

CODE = ("plywise.compressors", "plywise.env")
"""What decides the figures of a study."""


def kept_run(folder: Path, asked: list[Any], run: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Returns what a run has found, now or in an earlier run that was asked for the same with the same code.

    Args:
        folder: of figures, and of states of runs that are not finished.
        asked: all that decides the figures besides the code, as JSON values.
        run: given a file for its state, goes on from it where it exists; returns JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = ResultStore(folder / "figures.sqlite")
    key = hashlib.sha256(json.dumps([code_digest(*CODE), *asked]).encode()).hexdigest()[:20]
    found: dict[str, Any] | None = store.get(key)
    if found is None:
        state = folder / f"{key}.safetensors"
        found = run(state)
        store.put(key, found)
        state.unlink(missing_ok=True)
    return found
