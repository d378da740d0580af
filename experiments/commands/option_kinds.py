"""What kind of value each option takes: looked at before anything else, so that a wrong one is told by its name."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plywise.compressors.errors import ConfigurationError
from plywise.compressors.plain_values import as_whole, plain

SHOWN = 80
"""Characters of a wrong value that a message shows, at most."""

TEXT, PATH, SWITCH = "a text", "a path: a text or a pathlib.Path", "True or False"
PATHS = f"{PATH}, or a list of them"
NAMES, NAMES_OR_TYPES = "a text, or a list of texts", "a text or a type of layer, or a list of them"
LIMITS = "a dictionary such as {'drop': 1.0, 'storage': 0.15}"
WHOLE = "a whole number"

KINDS: Mapping[str, str] = {
    **dict.fromkeys(("data", "method", "recover", "gradients", "channels"), TEXT),
    **dict.fromkeys(("out", "agent", "front", "weights", "device"), PATH),
    "plan": PATHS,
    **dict.fromkeys(("incremental", "knee"), SWITCH),
    **dict.fromkeys(("gradients_of", "repair"), NAMES),
    "ignored": NAMES_OR_TYPES,
    "limits": LIMITS,
    "pick": WHOLE,
}
"""By option; None is allowed as well. Numbers are checked where their bounds are."""


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options with Python's own numbers in place of those of numpy and torch.

    Raises:
        ConfigurationError: where one is of another kind than it must be.
    """
    found = {name: plain(value) for name, value in options.items()}
    if isinstance(found.get("limits"), Mapping):
        found["limits"] = {name: plain(value) for name, value in found["limits"].items()}
    for name, kind in KINDS.items():
        if found.get(name) is not None:
            check_kind(name, found[name], kind)
    return found


def check_kind(name: str, value: Any, kind: str) -> None:
    """Raises ConfigurationError unless a value is of a kind that `KINDS` names."""
    if not _is(value, kind):
        shown = repr(value)
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
        raise ConfigurationError(f"{name}={shown} is a {type(value).__name__} and must be {kind}")


def checked_path(name: str, value: Any) -> Path:
    """Returns a path; raises ConfigurationError on what is none."""
    check_kind(name, value, PATH)
    return Path(value)


def _is(value: Any, kind: str) -> bool:
    if kind == TEXT:
        return isinstance(value, str)
    if kind == PATH:
        return isinstance(value, str | os.PathLike) and "\0" not in str(value)
    if kind == PATHS:
        return _is(value, PATH) or (isinstance(value, list | tuple) and all(_is(each, PATH) for each in value))
    if kind == SWITCH:
        return isinstance(value, bool)
    if kind == LIMITS:
        return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
    if kind == WHOLE:
        return as_whole(value) is not None
    kinds = (str, type) if kind == NAMES_OR_TYPES else (str,)
    each = [value] if isinstance(value, kinds) else value
    is_list = isinstance(each, Iterable) and not isinstance(each, Mapping | bytes)
    return is_list and all(isinstance(name, kinds) for name in each)
