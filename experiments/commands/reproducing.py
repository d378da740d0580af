"""The command that makes a hand-over folder again."""

import shlex
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from plywise.env.bank.repair import FULL, PARTS, Repair
from plywise.env.recovery.recovery_settings import RecoverySettings
from plywise.env.score.demand import Demand
from plywise.experiments.commands.compression_settings import CompressionSettings
from plywise.experiments.data.preprocessing import size_text

Options = dict[str, Any]


def reproducing_command(settings: CompressionSettings, out: Path) -> str:
    """Returns what asks for the same again: a shell command, or a call in Python where network or data are objects.

    Args:
        settings: what was asked.
        out: the folder that was written.
    """
    source = settings.source
    options = _options(settings)
    if isinstance(source.model, str) and isinstance(source.task, str | None) and settings.drop is None:
        given = {"model": source.model, "data": source.data, "task": source.task, **options, "out": out}
        words = ["plywise", "compress"]
        for name, value in given.items():
            if value is not None or name == "max_accuracy_drop":
                for each in value if name == "plan" else (value,):
                    words += [f"--{name.replace('_', '-')}", _word(each)]
        return shlex.join(words)
    model = repr(source.model) if isinstance(source.model, str) else "model"
    data = [] if source.data is not None or source.task is None else [repr(source.task)]
    if data and not isinstance(source.task, str):
        data = ["task"]
    named: Options = {"data": source.data} if source.data is not None else {}
    named |= options | ({} if settings.drop is None else {"limits": {"drop": settings.drop}})
    arguments = [model, *data, f"out={str(out)!r}", *(f"{name}={_literal(value)}" for name, value in named.items())]
    return f"plywise.compress({', '.join(arguments)})"


def _options(settings: CompressionSettings) -> Options:
    """Returns all other options that are not the usual ones, and seed and budget."""
    search, source = settings.search, settings.source
    found: Options = {"weights": source.weights, "ignored": tuple(map(_name, source.ignored)) or None}
    images = source.preprocessing
    size = None if images.size is None else size_text(images.size)
    found |= {"mean": images.mean, "std": images.std, "size": size, "crop": images.crop, "channels": images.channels}
    found |= {"agent": search.agent, "method": search.method, "plan": search.plan or None}
    usual, demand = asdict(Demand()), asdict(settings.demand)
    changed = {name: value for name, value in demand.items() if value != usual[name]}
    if not search.plan:
        changed |= {"evaluations": search.evaluations}
    found |= {"device": settings.device, "repair": _repair(settings.repair), **_recovery(settings.recovery)}
    return {name: value for name, value in found.items() if value is not None} | changed | {"seed": search.seed}


def _recovery(settings: RecoverySettings | None) -> Options:
    if settings is None:
        return {}
    usual = RecoverySettings()
    changed = [each.name for each in fields(usual) if getattr(settings, each.name) != getattr(usual, each.name)]
    options = ("epochs", "incremental", "gradients", "gradients_of")
    return {"recover": settings.mode} | {name: getattr(settings, name) for name in options if name in changed}


def _repair(repair: Repair) -> tuple[str, ...] | None:
    if repair == FULL:
        return None
    return tuple(part for part in PARTS if getattr(repair, part)) if repair else ("none",)


def _name(ignored: str | type) -> str:
    return ignored if isinstance(ignored, str) else ignored.__name__


def _word(value: Any) -> str:
    """Returns an option's value as it stands on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _literal(value: Any) -> str:
    if isinstance(value, tuple) and any(isinstance(each, Path) for each in value):
        return _literal(value[0]) if len(value) == 1 else repr([str(each) for each in value])
    return repr(str(value) if isinstance(value, Path) else value)
