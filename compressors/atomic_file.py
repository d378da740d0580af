"""Files that are whole at any moment: the old content or the new, never half of it."""

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Writes alongside the file and renames; on a full disk or an interruption nothing is left behind.

    Raises:
        OSError: the folder is missing, not writable or full; an older file of this name is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not say where, and the temporary name would puzzle
        raise
    finally:
        temporary.unlink(missing_ok=True)
