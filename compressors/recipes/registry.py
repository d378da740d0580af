"""All techniques by name: our own, and those of other installed packages."""

from collections.abc import Mapping
from typing import Any

from plywise.compressors.discovery import import_modules
from plywise.compressors.errors import ConfigurationError
from plywise.compressors.recipes.entry_points import load_entry_points

FOLDERS = tuple(f"plywise.compressors.{stage}" for stage in ("structure", "sparsity", "quantization"))
"""Packages whose files declare techniques; each registers itself when it is imported."""

TECHNIQUES: dict[str, type[Any]] = {}
"""Techniques imported so far; `registered` has all."""


def register(kind: type[Any]) -> None:
    """Adds a class of techniques under its `name`.

    Raises:
        ConfigurationError: if another class has that name.
    """
    taken = TECHNIQUES.setdefault(kind.name, kind)
    if (taken.__module__, taken.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ConfigurationError(
            f"technique {kind.name!r} of {kind.__module__} has the name of one of {taken.__module__}; rename it"
        )
    TECHNIQUES[kind.name] = kind


def registered(base: type[object]) -> Mapping[str, type[Any]]:
    """Returns all techniques by name, below the class `base`; the first call imports them.

    Raises:
        ConfigurationError: where one of another package cannot be used.
    """
    for folder in FOLDERS:
        import_modules(folder)
    load_entry_points(base)  # type: ignore[arg-type]  # a class is hashable
    return TECHNIQUES
