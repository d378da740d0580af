"""A progress bar with the time left, for whatever takes longer than a moment."""

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE_SECONDS = 2.0

Item = TypeVar("Item")


def tracked(items: Iterable[Item], description: str, count: int | None = None) -> Iterator[Item]:
    """Yields `items`, with a bar on the standard error stream once two seconds have passed.

    Args:
        items: what to go through.
        description: what is being done.
        count: how many items there are, where they cannot tell.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    total = count if count is not None else len(items) if isinstance(items, Sized) else None
    task = progress.add_task(description, total=total)
    begun = time.monotonic()
    try:
        for item in items:
            if not progress.live.is_started and time.monotonic() - begun > PATIENCE_SECONDS:
                progress.start()
            yield item
            progress.advance(task)
    finally:
        if progress.live.is_started:
            progress.stop()
