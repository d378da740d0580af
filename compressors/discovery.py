"""Imports all files of a folder, for classes that register themselves."""

import pkgutil
from functools import cache
from importlib import import_module


@cache
def import_modules(package: str) -> None:
    """Imports every module of a package, the first time that it is called with its dotted name."""
    for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
        import_module(module.name)
