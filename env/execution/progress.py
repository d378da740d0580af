"""How far work is that takes longer than a moment: a bar in a terminal, lines with the time of day elsewhere."""

import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, Protocol, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

PATIENCE_SECONDS = 2.0
"""What is done by then shows nothing."""

LINE_SECONDS = 60.0
"""Where no terminal redraws a bar, a line is written this often."""

_SHOWING = threading.RLock()
"""Held by whoever shows something."""
_STACK: list["Progress"] = []
"""What is being done, the innermost last."""

STAMP = "%Y-%m-%d %H:%M:%S"

Item = TypeVar("Item")


class Tracker(Protocol):
    """Shows how far a loop is."""

    def __call__(self, items: Iterable[Any], what: str, count: int, /) -> Iterable[Any]:
        """Yields `count` items; `what` is being done."""


def untracked(items: Iterable[Item], what: str, count: int, /) -> Iterable[Item]:
    """Shows nothing."""
    return items


def tracked(items: Iterable[Item], description: str, count: int | None = None) -> Iterator[Item]:
    """Yields `items` and shows how far they are on the standard error stream once two seconds have passed.

    Args:
        items: what to go through.
        description: what is being done.
        count: how many items there are, where they cannot tell.
    """
    total = count if count is not None else len(items) if isinstance(items, Sized) else None
    with Progress(description, total) as progress:
        for done, item in enumerate(items):
            yield item
            progress.update(done + 1)


@contextmanager
def phase(track: Tracker, what: str) -> Iterator[None]:
    """Shows how long a piece of work takes that has no steps to count.

    Args:
        track: shows it, such as `tracked`.
        what: is being done.
    """
    for _ in track((None,), what, 1):
        yield


class Progress:
    """Shows how far a piece of work is, for as long as the `with` block runs; of nested ones the innermost is shown.

    A thread shows it after two seconds, and writes lines where there is no bar, also while one step takes long.
    """

    def __init__(self, description: str, total: int | None, begun_at: int = 0, shown: bool = True) -> None:
        """Prepares; nothing is shown yet.

        Args:
            description: what is being done.
            total: how many steps there are, where that is known.
            begun_at: steps that an earlier run has done; they tell nothing about the time left.
            shown: whether to show anything at all.
        """
        self._description, self._total, self._shown = description, total, shown
        self._begun_at = self._done = begun_at
        console = Console(stderr=True)
        self._terminal = console.is_interactive
        self._counted = total != 1
        counted = (MofNCompleteColumn(), TimeRemainingColumn()) if self._counted else (TimeElapsedColumn(),)
        columns = (TextColumn("{task.description}"), BarColumn(), *counted, TextColumn("{task.fields[note]}"))
        self._bar = Bar(*columns, console=console, transient=True)
        self._task = self._bar.add_task(
            description, total=total if self._counted else None, completed=begun_at, note=""
        )
        self._console, self._note = console, ""
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._begun = time.monotonic()
        self._next_line = self._begun + PATIENCE_SECONDS
        self._lines = 0
        with _SHOWING:
            for outer in _STACK[-1:]:
                outer._hide()
            _STACK.append(self)
        if self._shown:
            threading.Thread(target=self._keep_showing, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with _SHOWING:
            self._hide()
            if self in _STACK:
                _STACK.remove(self)
            if self._lines and self._done == self._total:
                self._write(f"done after {_duration(time.monotonic() - self._begun)}")

    def update(self, done: int, note: str = "") -> None:
        """Says that `done` steps are done in all; `note` is shown behind them."""
        with _SHOWING:
            self._done, self._note = done, note
            self._bar.update(self._task, completed=done, note=note)
            self._show(time.monotonic())

    def _keep_showing(self) -> None:
        while not self._ended.wait(LINE_SECONDS if self._lines else PATIENCE_SECONDS):
            with _SHOWING:
                if not self._ended.is_set():
                    self._show(time.monotonic())

    def _show(self, now: float) -> None:
        if not self._shown or now < self._next_line or _STACK[-1:] != [self]:
            return
        if not self._terminal:
            self._next_line = now + LINE_SECONDS
            self._write(", ".join(filter(None, (self._count(now), self._time_left(now), self._note))))
        elif not self._bar.live.is_started:
            self._bar.start()

    def _hide(self) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    def _count(self, now: float) -> str:
        if not self._counted:
            return "" if self._done else f"{_duration(now - self._begun)} so far"
        return f"{self._done:,}" if self._total is None else f"{self._done:,} of {self._total:,}"

    def _time_left(self, now: float) -> str:
        new = self._done - self._begun_at
        if self._total is None or not new > 0 or not self._done < self._total:
            return ""
        return f"about {_duration((now - self._begun) / new * (self._total - self._done))} left"

    def _write(self, text: str) -> None:
        self._lines += 1
        stamp = time.strftime(STAMP)
        self._console.print(f"{stamp} {self._description}: {text}", markup=False, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    """Returns a time in words, as exact as an estimate deserves."""
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60.0)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
