"""How a network is called on a batch, where the user does not say it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.errors import ModelError
from plywise.env.task.batch import Batch, items_in, shapes_of

Forward = Callable[[nn.Module, Batch], Any]
"""Runs a network on a batch and returns its outputs."""

Run = Callable[[nn.Module], Any]
"""Runs a network on some batch that is always the same and returns its outputs."""

LABELS = ("label", "labels", "target", "targets")
"""Entries of a batch with these names are never given to a network."""


@dataclass(frozen=True)
class CallByRule:
    """Calls `model(x)`, `model(*x)` or `model(**x)`, without what the batch holds besides: labels.

    Attributes:
        count: leading entries of a tuple that the network takes.
        names: entries of a mapping that it takes.
    """

    count: int = 1
    names: tuple[str, ...] = ()

    def __call__(self, model: nn.Module, batch: Batch) -> Any:
        """Returns the outputs."""
        if isinstance(batch, Mapping):
            return model(**{name: batch[name] for name in self.names})
        if isinstance(batch, list | tuple):
            return model(*batch[: self.count])
        return model(batch)


def rule_for(model: nn.Module, batch: Batch) -> CallByRule:
    """Returns how a network takes batches like this one, by the parameters of its forward.

    Of a tuple, required parameters are filled first. Optional ones are filled too, unless with what looks like labels:
    whole numbers, one an item.

    Raises:
        ModelError: where the batch lacks something that forward requires.
    """
    if not isinstance(batch, Mapping | list | tuple):
        return CallByRule()
    parameters = list(inspect.signature(model.forward).parameters.values())
    if isinstance(batch, Mapping):
        return CallByRule(names=_names(model, batch, parameters))
    places = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    least = sum(each.default is each.empty for each in places)
    anything = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    if len(batch) < least:
        raise ModelError(
            f"a batch has {len(batch)} entries ({shapes_of(batch)}) and forward{inspect.signature(model.forward)} "
            f"requires {least}; give batches with all of them, or forward_step=(model, batch) -> outputs"
        )
    count, items = least, items_in(batch)
    most = len(batch) if anything else min(len(batch), len(places))
    while count < most and (count == 0 or not _like_labels(batch[count], items)):
        count += 1
    return CallByRule(count=count)


def _like_labels(entry: Any, items: int) -> bool:
    if not isinstance(entry, Tensor):
        return not isinstance(entry, list | tuple | Mapping)
    return (
        entry.dim() <= 1 and len(entry.reshape(-1)) == items and entry.dtype in (torch.int64, torch.int32, torch.bool)
    )


def _names(model: nn.Module, batch: Mapping[str, Any], parameters: list[inspect.Parameter]) -> tuple[str, ...]:
    anything = any(each.kind is each.VAR_KEYWORD for each in parameters)
    known = {each.name for each in parameters}
    names = tuple(name for name in batch if name not in LABELS and (name in known or anything))
    required = [
        each.name
        for each in parameters
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    missing = [name for name in required if name not in names]
    if missing or not names:
        raise ModelError(
            f"a batch has the entries {', '.join(map(str, batch))} and forward{inspect.signature(model.forward)} "
            f"{'requires ' + ', '.join(missing) if missing else 'takes none of them'}; rename them in the batches, or "
            "give forward_step=(model, batch) -> outputs"
        )
    return names


def arguments_of(model: nn.Module, forward: Forward, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Returns what a forward step calls a network with on a batch, by position and by keyword, and what that returns.

    Raises:
        ModelError: where it calls the network several times, or not itself but parts of it.
    """
    seen: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
    handle = model.register_forward_hook(lambda _, *call: seen.append(call), with_kwargs=True)
    try:
        with torch.no_grad():
            forward(model, batch)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ModelError(
            f"the forward step calls the network {len(seen)} times on a batch, so it is no single graph; "
            "call model(...) once in it"
        )
    return seen[0]
