"""The one error tree: everything a user can cause is a `PlywiseError` with a message that helps.

Each message says what was given, what is allowed and what to do. The command line prints it and
exits with code 2; anything else that escapes is a defect of ours.
"""

import difflib
from collections.abc import Iterable


class PlywiseError(Exception):
    """Base of all errors that a user can cause and fix."""


class ConfigurationError(PlywiseError):
    """A name, a value or a combination of them is not allowed."""


class DataError(PlywiseError):
    """A dataset is missing, unreadable or does not fit the network."""


class ModelError(PlywiseError):
    """A network cannot be built, loaded or run."""


class UnsupportedLayerError(PlywiseError):
    """A technique was asked to compress a layer that it refuses."""


class DemandError(PlywiseError):
    """A demand that no plan can meet; the message names the best reachable value of each ceiling."""


class FileFormatError(PlywiseError):
    """A file of ours is truncated, altered, hostile or of another version."""


class WorkerError(PlywiseError):
    """A process that did part of the work was ended from outside."""


def unknown_name(kind: str, given: str, known: Iterable[str]) -> ConfigurationError:
    """Builds the error for a name that is not in a list, with the nearest valid names."""
    choices = sorted(known)
    near = difflib.get_close_matches(str(given), choices, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Known: {', '.join(choices)}."
    return ConfigurationError(f"unknown {kind} {given!r}. {hint}")
