"""How long the parts of a study take."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Parts:
    """Seconds by what they went into.

    Attributes:
        seconds: of each part; of the last time where it was timed several times.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Starts empty; `clock` tells the seconds."""
        self.seconds: dict[str, float] = {}
        self._clock = clock

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Counts what happens inside."""
        started = self._clock()
        yield
        self.seconds[part] = self._clock() - started
