"""Which plan of a front is handed over, and what it was made for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plywise.compressors.errors import ConfigurationError
from plywise.compressors.plain_values import plain
from plywise.env.score.demand import Demand
from plywise.experiments.commands.option_kinds import SWITCH, WHOLE, check_kind, checked_path
from plywise.experiments.front.front_folder import FrontFolder

SEARCHES = ("agent", "method", "plan")
"""Options that say who looks for a plan, or which one to take."""

SAVED = ("model", "data", "task", "weights", "ignored", "device", "mean", "std", "size", "crop", "channels", "seed")
"""Options that say what is compressed, as a front's folder keeps them."""


def saved_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of a user's options that a folder keeps, as text; networks and data in memory are left out."""
    found = {name: plain(options[name]) for name in SAVED if options.get(name) is not None}
    kept = {name: _written(value) for name, value in found.items()}
    return {name: value for name, value in kept.items() if isinstance(value, str | int | float) and value != ""}


def _written(value: Any) -> Any:
    """Returns a value as a text or a number where it can be one; several names and numbers with commas between."""
    if isinstance(value, list | tuple):
        parts = [each.__name__ if isinstance(each, type) else plain(each) for each in value]
        return ",".join(map(str, parts)) if all(isinstance(each, str | int | float) for each in parts) else value
    if isinstance(value, type):
        return value.__name__
    return str(value) if isinstance(value, Path) else value


def picked_options(options: Mapping[str, Any], front: str | Path, pick: int | None, knee: bool) -> dict[str, Any]:
    """Returns the options of a compression that hands over a plan of a front.

    What the user gives comes before what the front was made with. Without an accuracy ceiling of the user's there is
    none: the point was picked for what it loses.

    Args:
        options: of `plywise compress`, by name.
        front: folder of the front.
        pick: number of a plan.
        knee: take the plan from which on savings cost most accuracy.

    Raises:
        ConfigurationError: where no plan, or more than one, is named.
        FileFormatError: where the folder holds no front.
    """
    given = [f"--{name}" for name in SEARCHES if options.get(name) is not None]
    if given:
        raise ConfigurationError(f"--from hands over a plan that was found: leave out {' and '.join(given)}")
    front = checked_path("front", front)
    check_kind("knee", knee, SWITCH)
    if pick is not None:
        check_kind("pick", pick, WHOLE)
    found = FrontFolder.load(front)
    if (pick is None) == (not knee):
        shown = ", ".join(str(row.number) for row in found.front)
        raise ConfigurationError(f"which plan of {front}? Give one of --pick N ({shown}) and --knee")
    row = found.picked(pick)
    result = dict(options) | {"plan": front / row.plan}
    named = result.get("data") is not None or result.get("task") is not None
    for name, value in found.options.items():
        if result.get(name) in (None, (), 0) and not (named and name in ("data", "task")):
            result[name] = value
    if result.get("max_accuracy_drop", Demand().max_accuracy_drop) == Demand().max_accuracy_drop:
        result["max_accuracy_drop"] = None
    return result
