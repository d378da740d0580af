"""Techniques that other installed packages declare under the entry point `plywise.techniques`."""

import dataclasses
from functools import cache
from importlib import metadata
from typing import TypeVar

from plywise.compressors.errors import ConfigurationError

GROUP = "plywise.techniques"
DECLARED = ("name", "stage", "summary", "source")
"""What a technique must say about itself."""

Kind = TypeVar("Kind")


@cache
def load_entry_points(base: type[Kind]) -> tuple[type[Kind], ...]:
    """Imports the techniques of other packages, the first time that it is called.

    Args:
        base: class that they must be below.

    Raises:
        ConfigurationError: where one cannot be imported or is not whole; the message names its package.
    """
    return tuple(_loaded(entry, base) for entry in sorted(metadata.entry_points(group=GROUP)))


def _loaded(entry: metadata.EntryPoint, base: type[Kind]) -> type[Kind]:
    package = entry.dist.name if entry.dist is not None else "an unknown package"
    where = f"technique {entry.name!r} of the package {package} ({entry.value})"
    try:
        found = entry.load()
    except Exception as error:  # foreign code may raise anything
        raise ConfigurationError(
            f"{where} cannot be imported: {type(error).__name__}: {error}; fix or uninstall {package}"
        ) from error
    flaw = _flaw(found, base)
    if flaw is not None:
        raise ConfigurationError(f"{where} cannot be used: {flaw}; fix or uninstall {package}")
    assert isinstance(found, type)
    return found


def _flaw(found: object, base: type) -> str | None:
    if not isinstance(found, type) or not issubclass(found, base):
        return f"it is not a class below {base.__module__}.{base.__name__}"
    missing = [name for name in DECLARED if not isinstance(getattr(found, name, None), str | int)]
    missing += sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        return f"it lacks {', '.join(missing)}"
    if "__dataclass_params__" not in vars(found) or not found.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return "it is not a frozen dataclass"
    plain = [field.name for field in dataclasses.fields(found) if "grid" not in field.metadata]  # type: ignore[arg-type]
    return f"its field {plain[0]} is not declared with choice()" if plain else None
