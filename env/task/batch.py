"""Batches and outputs: any nesting of tensors in tuples, lists, mappings and dataclasses."""

import copy
import dataclasses
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Batch = Any
"""A tensor, or a tuple, list or mapping of tensors and of what else a forward takes."""


def tensors_in(value: Any) -> list[Tensor]:
    """Returns the tensors of a batch or of outputs, in order."""
    return [leaf for leaf in named_leaves(value).values() if isinstance(leaf, Tensor)]


def named_leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Returns what a batch or outputs hold by where it is, such as `boxes.0`; `name` where it is a single thing."""
    entries = None if isinstance(value, Tensor) else _entries(value)
    if entries is None:
        return {name: value}
    found: dict[str, Any] = {}
    for key, each in entries:
        for inner, leaf in named_leaves(each, f"{name}.{key}" if name else str(key)).items():
            found[free_name(inner, found)] = leaf
    return found


def free_name(name: str, taken: Container[str]) -> str:
    """Returns a name, with a number behind it where it is taken: `{"a.b": x, "a": {"b": y}}` has two of one name."""
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def named_tensors(value: Any) -> dict[str, Tensor]:
    """Does what `named_leaves` does, for tensors only."""
    return {name: leaf for name, leaf in named_leaves(value).items() if isinstance(leaf, Tensor)}


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns the same nesting with `change` of each tensor."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        found = {key: mapped(each, change) for key, each in value.items()}
        if type(value) is dict:
            return found
        try:
            return type(value)(found)  # type: ignore[call-arg]
        except TypeError:
            return found
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(each, change) for each in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(each, change) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        again = copy.copy(value)
        for field in dataclasses.fields(value):  # past the constructor, which need not take all, and past `frozen`
            object.__setattr__(again, field.name, mapped(getattr(value, field.name), change))
        return again
    return value


def as_studied(value: Batch) -> Batch:
    """Returns a batch as networks are studied on: on the CPU, floats in float32, without gradients."""
    return mapped(value, _studied)


def _studied(tensor: Tensor) -> Tensor:
    floating = tensor.is_floating_point() and tensor.dtype != torch.float32
    return tensor.detach().to("cpu", torch.float32 if floating else tensor.dtype)


def items_in(batch: Batch) -> int:
    """Returns how many items a batch has: the first axis of its first tensor that has one, else 1."""
    return next((len(tensor) for tensor in tensors_in(batch) if tensor.dim()), 1)


def splits(batch: Batch) -> bool:
    """Returns whether each tensor of a batch has the items along its first axis."""
    count = items_in(batch)
    found = tensors_in(batch)
    return bool(found) and all(tensor.dim() and len(tensor) == count for tensor in found)


def part(batch: Batch, start: int, stop: int) -> Batch:
    """Returns some items of a batch; tensors without them stay whole."""
    count = items_in(batch)
    return mapped(batch, lambda tensor: tensor[start:stop] if tensor.dim() and len(tensor) == count else tensor)


def alike(one: Batch, other: Batch) -> bool:
    """Returns whether two batches are nested alike and have tensors of the same kinds, but for the number of items."""
    first, second = named_tensors(one), named_tensors(other)
    return first.keys() == second.keys() and all(
        (a.shape[1:], a.dtype, a.dim()) == (b.shape[1:], b.dtype, b.dim())
        for a, b in zip(first.values(), second.values(), strict=True)
    )


def joined(batches: Sequence[Batch]) -> Batch:
    """Returns one batch with the items of all, which must be `alike`; tensors without items are those of the first."""
    if len(batches) == 1:
        return batches[0]
    count = items_in(batches[0])
    columns = zip(*map(tensors_in, batches), strict=True)
    return mapped(
        batches[0], lambda tensor: _column(next(columns)) if tensor.dim() and len(tensor) == count else next(columns)[0]
    )


def shapes_of(batch: Batch) -> str:
    """Returns in words what a batch is made of."""
    found = named_tensors(batch)
    if list(found) == [""]:
        return f"a tensor {tuple(found[''].shape)} {_dtype(found[''])}"
    inside = ", ".join(f"{name}: {tuple(tensor.shape)} {_dtype(tensor)}" for name, tensor in found.items())
    return f"a {type(batch).__name__} of {inside or 'no tensors'}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _column(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors))


def _entries(value: Any) -> list[tuple[Any, Any]] | None:
    """Returns what a nesting holds, None where a value is none."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return None
