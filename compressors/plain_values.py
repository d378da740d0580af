"""Values as users give them: numbers of numpy and torch become Python's own, which JSON can hold."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any


def plain(value: Any) -> Any:
    """Returns a single number of numpy or torch as Python's own; anything else as it is."""
    single = getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None))
    return value.item() if single else value


def as_number(value: Any) -> int | float | None:
    """Returns a plain number; None for anything else, such as a truth value, a text or NaN."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = value if isinstance(value, int) else float(value)
    except OverflowError:  # of a fraction beyond the largest float
        return None
    return None if number != number else number


def as_whole(value: Any) -> int | None:
    """Returns a plain whole number; None for anything else, `3.0` among it."""
    value = plain(value)
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def as_json(value: Any) -> Any:
    """Returns what JSON can hold: plain numbers, None for those that are not finite, texts for anything unknown."""
    value = plain(value)
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if callable(getattr(value, "tolist", None)):
        value = value.tolist()
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(each) for each in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
