"""Keeps what the integer solver prints about itself off the console."""

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

SOLVERS = b"Highs"
"""How lines begin that HiGHS prints straight to the standard output, which no option of it turns off."""


@contextmanager
def without_solver_output() -> Iterator[None]:
    """Withholds those lines while the block runs; what else is written to the standard output comes out behind it.

    The solver writes to the file descriptor and knows nothing of `sys.stdout`.
    """
    try:
        console = os.dup(1)
    except OSError:  # the standard output is closed: there is nothing to keep clean
        yield
        return
    try:
        with tempfile.TemporaryFile() as file:
            _flush()
            os.dup2(file.fileno(), 1)
            try:
                yield
            finally:
                _flush()
                os.dup2(console, 1)
                file.seek(0)
                left = b"".join(line for line in file if not line.startswith(SOLVERS))
                if left:
                    _write(left)
    finally:
        os.close(console)


def _write(content: bytes) -> None:
    while content:
        content = content[os.write(1, content) :]


def _flush() -> None:
    """Writes what Python and the C library still hold back."""
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)
