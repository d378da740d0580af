"""What a command says when it cannot go on: one message on the standard error stream, and an exit code."""

import errno
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

USAGE_ERROR = 2
INTERRUPTED = 130
KEPT = "what was finished is kept, and the same command goes on from there"


@contextmanager
def telling_mistakes(debug: bool = False) -> Iterator[None]:
    """Turns whatever a user can fix into one message and exit code 2, and Ctrl-C into exit code 130.

    Warnings of ours lose the line of code that they come with.

    Args:
        debug: leave errors as they are, with their traceback.
    """
    try:
        with _brief_warnings():
            yield
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"\nstopped; {KEPT}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        # Imported late, as it brings torch along: `--help` and a mistyped option need not wait for that.
        from plywise.compressors.errors import PlywiseError

        if debug or not isinstance(error, PlywiseError | OSError):
            raise
        fail(str(error) if isinstance(error, PlywiseError) else _about_files(error))


@contextmanager
def _brief_warnings() -> Iterator[None]:
    usual, ours = warnings.formatwarning, Path(__file__).resolve().parents[1]

    def brief(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        place = Path(filename).resolve()
        if place.is_relative_to(ours) and "site-packages" not in place.relative_to(ours).parts:
            return f"plywise: {message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = brief
    try:
        yield
    finally:
        warnings.formatwarning = usual


def fail(message: str) -> NoReturn:
    """Ends with one message and exit code 2."""
    print(f"plywise: {message}", file=sys.stderr)
    raise SystemExit(USAGE_ERROR) from None


def _about_files(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    advice = "; check that it is there and may be read or written" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = f"; make room: {KEPT}"
    return f"{error.strerror or error}{where}{advice}"
