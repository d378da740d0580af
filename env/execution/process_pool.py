"""Tasks in several processes of this machine, with one thread each."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.context import BaseContext, SpawnContext, SpawnProcess
from types import ModuleType

from plywise.compressors.errors import WorkerError
from plywise.env.execution import worker
from plywise.env.execution.executor import Context, Executor, Result, Setup, Task
from plywise.env.storage.memory import share
from plywise.env.storage.result_store import ResultStore

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Read by numerical libraries when they are loaded."""


class ProcessPool(Executor[Context]):
    """Runs tasks in processes that share the memory that this one may keep in equal parts."""

    def __init__(
        self, processes: int, setup: Setup[Context], store: ResultStore | None = None, forked: bool = False
    ) -> None:
        """Prepares; processes start with the first task.

        Args:
            processes: how many.
            setup: of the context.
            store: as for `Executor`.
            forked: whether processes begin as copies of this one, so that `setup` need not be pickled; on Linux only,
                and nothing in its context may use threads or a graphics card. Others begin with nothing and import
                what they need, but never the caller's main module, which therefore needs no guard.
        """
        super().__init__(store)
        context: BaseContext = get_context("fork") if forked else _FreshContext()
        self._pool = ProcessPoolExecutor(processes, context, worker.begin, (setup, share(processes)))

    def close(self, at_once: bool = False) -> None:
        """Waits for what was submitted, or, `at_once`, kills the processes."""
        workers = list((self._pool._processes or {}).values())  # of Python 3.14 on, the pool can do this itself
        if at_once:
            for process in workers:
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=at_once)

    def _start(self, task: Task[Context, Result]) -> Future[Result]:
        assert type(task).__module__ != "__main__", f"{type(task).__name__} must be of a module that workers can import"
        try:
            return self._pool.submit(worker.run, task)
        except BrokenProcessPool as error:
            raise self._told(error) from error

    def _told(self, error: BaseException) -> BaseException:
        if not isinstance(error, BrokenProcessPool):
            return error
        told = WorkerError(
            "a process that did part of the work was ended from outside, most often because memory ran out; end other "
            "programs or give less memory to what is kept, and run the same again: what was finished is not lost"
        )
        told.__cause__ = error
        return told


class _FreshProcess(SpawnProcess):
    """A new interpreter with libraries of one thread, which does not run the caller's main module once more."""

    def start(self) -> None:
        """Starts the process."""
        with _bare():
            super().start()


class _FreshContext(SpawnContext):
    Process = _FreshProcess


@contextmanager
def _bare() -> Iterator[None]:
    """Hides the main module and asks for one thread while a process is started, which takes both over."""
    main, before = sys.modules["__main__"], {name: os.environ.get(name) for name in ONE_THREAD}
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ |= dict.fromkeys(ONE_THREAD, "1")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
