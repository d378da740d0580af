"""Texts that every machine has: the sources of Python's own standard library."""

import sysconfig
from collections.abc import Iterable
from pathlib import Path

from plywise.compressors.errors import DataError


def folder() -> Path:
    """Returns the folder of the standard library of the Python that runs."""
    return Path(sysconfig.get_paths()["stdlib"])


def module_source(name: str) -> bytes:
    """Returns the source of a module, of its `__init__.py` where it is a package; nothing where Python has none."""
    places = folder() / f"{name}.py", folder() / name / "__init__.py"
    return next((place.read_bytes() for place in places if place.is_file()), b"")


def package_files(name: str) -> list[Path]:
    """Returns the source files of a package, in the order of their names."""
    return sorted((folder() / name).rglob("*.py"))


def texts(modules: Iterable[str], least: int) -> bytes:
    """Returns the sources of modules one after the other.

    Args:
        modules: names; a Python that lacks some of them gives the others.
        least: bytes that are needed.

    Raises:
        DataError: there is less.
    """
    text = b"\n".join(module_source(name) for name in modules)
    if len(text) < least:
        raise DataError(
            f"the sources of Python's standard library in {folder()} have {len(text):,} bytes in the modules that are "
            f"read, {least:,} are needed; install them (on Debian: apt install libpython3-stdlib)"
        )
    return text
