"""Tasks in this process, one after the other."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import cached_property

from plywise.env.execution.executor import Context, Executor, Result, Setup, Task
from plywise.env.storage.result_store import ResultStore


class InProcess(Executor[Context]):
    """Runs a task when it is submitted; of several, each when its result is asked for."""

    def __init__(self, setup: Setup[Context], store: ResultStore | None = None) -> None:
        """Prepares; the context is made with the first task."""
        super().__init__(store)
        self._setup = setup

    def results(self, tasks: Iterable[Task[Context, Result]]) -> Iterator[Result]:
        """Runs tasks and yields their results."""
        return (self.submit(task).result() for task in tasks)

    def close(self, at_once: bool = False) -> None:
        """Does nothing: all that was submitted is done."""

    @cached_property
    def _context(self) -> Context:
        return self._setup.load()

    def _start(self, task: Task[Context, Result]) -> Future[Result]:
        future: Future[Result] = Future()
        try:
            future.set_result(task.run(self._context))
        except Exception as error:
            future.set_exception(error)
        return future
