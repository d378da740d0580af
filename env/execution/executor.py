"""Where tasks run: one interface over this process, a pool of processes, and whatever is added behind it.

A task is a small value: a frozen dataclass of names and numbers that can be pickled. What is large and the same for all
tasks (a network, its bank) is the context; each worker makes it once from a `Setup`. Nothing else is shared: a task
returns a plain value, and what it writes to the cache is found there by others.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

from plywise.env.storage.result_store import ResultStore

Context = TypeVar("Context")
ContextIn = TypeVar("ContextIn", contravariant=True)
ContextOut = TypeVar("ContextOut", covariant=True)
Result = TypeVar("Result")
ResultOut = TypeVar("ResultOut", covariant=True)


class Task(Protocol[ContextIn, ResultOut]):
    """A piece of work that needs no other one's result."""

    @property
    def key(self) -> str | None:
        """What its result is kept under, with all in it that decides the result; None where nothing is kept.

        A task with a key returns JSON values: numbers, texts, lists and dicts.
        """

    def run(self, context: ContextIn) -> ResultOut:
        """Does the work; its errors come out of the future as they are."""


class Setup(Protocol[ContextOut]):
    """Makes the context of tasks; a value that can be pickled unless workers are forked."""

    def load(self) -> ContextOut:
        """Returns the context; called once in each worker, when it has its share of the memory."""


@dataclass(frozen=True)
class NoSetup:
    """Of tasks that need no context."""

    def load(self) -> None:
        """Returns None."""


class Executor(ABC, Generic[Context]):
    """Runs tasks; used in a `with` block, which ends all work where it is left by an error or by Ctrl-C."""

    def __init__(self, store: ResultStore | None = None) -> None:
        """Prepares.

        Args:
            store: where results of tasks with a key are kept, and found by later runs.
        """
        self._store = store

    def submit(self, task: Task[Context, Result]) -> Future[Result]:
        """Returns the future of a task's result; where that is known from an earlier run, nothing is run."""
        kept = self._store.get(task.key) if self._store is not None and task.key is not None else None
        future: Future[Result] = Future()
        if kept is not None:
            future.set_result(kept["result"])
        else:
            self._start(task).add_done_callback(partial(self._finish, task, future))
        return future

    def results(self, tasks: Iterable[Task[Context, Result]]) -> Iterator[Result]:
        """Submits tasks and yields their results in the same order, each as soon as those before it are known."""
        futures = [self.submit(task) for task in tasks]
        return (future.result() for future in futures)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(at_once=kind is not None)

    @abstractmethod
    def close(self, at_once: bool = False) -> None:
        """Waits for what was submitted, or, `at_once`, drops it; no worker is left afterwards."""

    @abstractmethod
    def _start(self, task: Task[Context, Result]) -> Future[Result]:
        """Has a task run."""

    def _told(self, error: BaseException) -> BaseException:
        """Returns an error as the caller should see it."""
        return error

    def _finish(self, task: Task[Context, Result], future: Future[Result], run: Future[Result]) -> None:
        """Hands on what has become of a task, and keeps its result."""
        if run.cancelled():
            future.cancel()
            return
        error = run.exception()
        try:
            if error is None:
                self._keep(task.key, run.result())
        except Exception as failure:  # of the store: whoever waits should know
            error = failure
        if error is None:
            future.set_result(run.result())
        else:
            future.set_exception(self._told(error))

    def _keep(self, key: str | None, result: Any) -> None:
        if self._store is not None and key is not None:
            assert json.loads(json.dumps(result)) == result, f"the result of {key} is not what would be read back"
            self._store.put(key, {"result": result})
