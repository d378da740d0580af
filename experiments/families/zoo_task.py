"""What a network of the zoo is for."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Batch = Any
"""A tensor, a tuple whose first entry is the input, or a dictionary of inputs by name; labels may be in it."""


@dataclass(frozen=True, eq=False)
class ZooTask:
    """Data and how networks are judged on them.

    Attributes:
        calibration: the training batches.
        validation, test: batches of other items.
        metric: `(model, batches)` to a number, or to that and one value an item whose mean it is; higher is better.
        loss: `(outputs, batch)` to a scalar that training makes small.
        distance: `(outputs, original outputs)` to one value an item, at least 0; None for the usual one.
        unit: of the metric.
    """

    calibration: Sequence[Batch]
    validation: Sequence[Batch]
    test: Sequence[Batch]
    metric: Callable[[nn.Module, Sequence[Batch]], float | tuple[float, Tensor]]
    loss: Callable[[Any, Batch], Tensor]
    distance: Callable[[Any, Any], Tensor] | None = None
    unit: str = "%"


def outputs_of(model: nn.Module, batch: Batch) -> Any:
    """Returns what a network makes of a batch."""
    if isinstance(batch, dict):
        return model(**{name: batch[name] for name in batch if name in inspect.signature(model.forward).parameters})
    return model(batch[0] if isinstance(batch, tuple) else batch)


def changed(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Returns a batch with `change` of each tensor."""
    if isinstance(batch, dict):
        return {name: change(tensor) for name, tensor in batch.items()}
    return tuple(map(change, batch)) if isinstance(batch, tuple) else change(batch)


def joined(batches: Sequence[Batch]) -> Batch:
    """Returns the items of all batches as one."""
    first = batches[0]
    if isinstance(first, dict):
        return {name: torch.cat([batch[name] for batch in batches]) for name in first}
    if isinstance(first, tuple):
        return tuple(map(torch.cat, zip(*batches, strict=True)))
    return torch.cat(list(batches))


def tensors_of(batch: Batch) -> list[Tensor]:
    """Returns the tensors of a batch, in order."""
    return list(batch.values()) if isinstance(batch, dict) else list(batch) if isinstance(batch, tuple) else [batch]
