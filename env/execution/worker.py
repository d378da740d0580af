"""What a process of a pool does: it gets ready once, and then runs one task after the other."""

import os
import signal
from functools import lru_cache
from multiprocessing import connection, parent_process
from threading import Thread
from typing import Any

import torch

from plywise.env.execution.executor import Setup, Task
from plywise.env.storage.memory import limit_memory

_setups: list[Setup[Any]] = []
"""The one that this process was given: a pool can hand something to its processes in no other way."""


def begin(setup: Setup[Any], memory: float) -> None:
    """Makes a process ready.

    Args:
        setup: of the context, which is made with the first task, so that its errors are told as those of a task.
        memory: GiB that this process may keep.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    limit_memory(memory)
    _setups[:] = [setup]
    _context.cache_clear()  # a forked process might have its parent's


def run(task: Task[Any, Any]) -> Any:
    """Runs a task in the context of this process."""
    return task.run(_context())


@lru_cache(1)
def _context() -> Any:
    return _setups[0].load()


def _end_with_parent() -> None:
    """Ends this process once its parent is gone, killed perhaps: nobody is left to use what it finds."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
