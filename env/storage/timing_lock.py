"""Timings and heavy work keep out of each other, in all processes of ours that share a cache folder."""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path

from plywise.compressors.errors import ConfigurationError
from plywise.env.storage.cache import cache_folder


class TimingLock:
    """Lets any number of processes work at once, or one of them time, and nobody else work.

    Two files are locked with `flock`, which the system undoes when a process ends, however it does. Whoever times takes
    the first for itself until it has done, and then waits for those who work to pause; whoever works passes through the
    first before each piece of work, so new pieces wait for a timing that waits. Pieces should be short: a batch of
    training, a layer's probes. Of one process, for one thread.

    A timing inside a piece of work interrupts the piece. Work inside a timing is part of it.
    """

    def __init__(self, folder: Path) -> None:
        """Prepares; nothing is locked yet.

        Args:
            folder: for two files, which stay empty.
        """
        machine = platform.node()  # a cache on a shared disk serves several, which do not disturb each other
        self._gate, self._work = folder / f"{machine}.gate.lock", folder / f"{machine}.work.lock"
        self._timings = 0
        self._working: ExitStack | None = None

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Waits until nobody works, and keeps everybody from it for as long as the block runs."""
        if self._timings:
            yield
            return
        interrupted = self._working
        if interrupted is not None:
            interrupted.close()
        try:
            with _locked(self._gate, fcntl.LOCK_EX), _locked(self._work, fcntl.LOCK_EX):
                self._timings = 1
                try:
                    yield
                finally:
                    self._timings = 0
        finally:
            if interrupted is not None:
                self._enter(interrupted)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Waits until nobody times, and keeps everybody from it for as long as the block runs."""
        if self._timings or self._working is not None:
            yield
            return
        with ExitStack() as piece:
            self._enter(piece)
            self._working = piece
            try:
                yield
            finally:
                self._working = None

    def pause(self) -> None:
        """Lets those time who wait for it, in the middle of a block of work."""
        if self._working is not None and not self._timings:
            self._working.close()
            self._enter(self._working)

    def _enter(self, piece: ExitStack) -> None:
        with _locked(self._gate, fcntl.LOCK_SH):
            piece.enter_context(_locked(self._work, fcntl.LOCK_SH))


@contextmanager
def timing() -> Iterator[None]:
    """Does what `TimingLock.timing` does, with the lock of the cache folder."""
    with _lock().timing():
        yield


@contextmanager
def working() -> Iterator[None]:
    """Does what `TimingLock.working` does, with the lock of the cache folder."""
    with _lock().working():
        yield


def pause() -> None:
    """Does what `TimingLock.pause` does, with the lock of the cache folder."""
    _lock().pause()


def _lock() -> TimingLock:
    return _lock_of(cache_folder("locks"), os.getpid())


@lru_cache(maxsize=8)
def _lock_of(folder: Path, process: int) -> TimingLock:
    """One for each process: a fork holds none of what its parent does."""
    return TimingLock(folder)


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        try:
            fcntl.flock(file, kind)  # a signal such as Ctrl-C ends the wait
        except OSError as error:
            raise _unusable(path, error) from error
        yield
    finally:
        os.close(file)


def _unusable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{path} cannot be locked ({error.strerror}), which keeps timings apart from other work; set PLYWISE_CACHE to "
        "a writable folder on a disk of this machine"
    )
