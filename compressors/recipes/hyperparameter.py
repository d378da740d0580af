"""Hyperparameters of techniques: how they are declared and checked."""

import dataclasses
from typing import Any

from plywise.compressors.errors import ConfigurationError


def choice(
    default: Any,
    *,
    grid: tuple[Any, ...],
    low: float | None = None,
    high: float | None = None,
    help: str = "",
    outside: str = "",
) -> Any:
    """Declares a hyperparameter.

    Args:
        default: value where none is given.
        grid: values that the search tries.
        low, high: bounds of allowed numbers, inclusive; a text must be on the grid.
        help: one line for the listing.
        outside: what to do instead of a number out of bounds.
    """
    metadata = {"grid": grid, "low": low, "high": high, "help": help, "outside": outside}
    return dataclasses.field(default=default, metadata=metadata)


def check_value(name: str, field: "dataclasses.Field[Any]", value: Any) -> None:
    """Raises ConfigurationError unless `value` is one that the hyperparameter `field` of technique `name` allows."""
    grid, low, high = field.metadata["grid"], field.metadata["low"], field.metadata["high"]
    if isinstance(field.default, str | bool):
        if value not in grid:
            raise ConfigurationError(f"{name}: {field.name}={value!r} is not allowed; choose one of {grid}")
        return
    if isinstance(value, bool) or not isinstance(value, int if isinstance(field.default, int) else int | float):
        kind = "a whole number" if isinstance(field.default, int) else "a number"
        raise ConfigurationError(f"{name}: {field.name}={value!r} must be {kind}, for example {field.default}")
    if (low is not None and value < low) or (high is not None and value > high) or value != value:
        outside = field.metadata["outside"]
        instead = f"; {outside}" if outside else ""
        raise ConfigurationError(f"{name}: {field.name}={value!r} must lie between {low} and {high}{instead}")
