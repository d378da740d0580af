"""What of a command's output is shown: everything, only results and errors, or one JSON document."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any


@contextmanager
def shown(quiet: bool, as_json: bool) -> Iterator[None]:
    """While a command works, keeps notes and progress off the console, or standard output free for one document.

    Results are printed behind the `with` block, and errors pass through it.

    Args:
        quiet: show neither notes nor progress.
        as_json: send what is written to standard output, by native code as well, to the standard error stream.
    """
    with ExitStack() as stack:
        if quiet:
            stack.enter_context(redirect_stderr(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        if as_json:
            stack.enter_context(redirect_stdout(sys.stderr))
            stack.enter_context(_native_output_as_errors())
        yield


@contextmanager
def starting(quiet: bool) -> Iterator[None]:
    """Shows that a command is being imported, torch above all, which may take ten seconds."""
    from plywise.env.execution.progress import phase, tracked, untracked

    with phase(untracked if quiet else tracked, "starting"):
        yield


def show_result(result: Any, as_json: bool, show: Callable[[], None]) -> None:
    """Prints a result as one JSON document, or as `show` does."""
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        show()


@contextmanager
def _native_output_as_errors() -> Iterator[None]:
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
