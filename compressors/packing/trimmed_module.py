"""Modules of the user's own that have lost channels: which tensors are smaller, and which attributes count fewer."""

from typing import Any

from torch import nn

from plywise.compressors.errors import FileFormatError, ModelError
from plywise.compressors.packing.module_spec import is_count, tensor_names

KIND = "Trimmed"
"""First entry of the description: `["Trimmed", {tensor: shape}, {attribute: count}]`."""


def is_trimmed(module: nn.Module, original: nn.Module) -> bool:
    """Returns whether a module has lost channels against the original of the same kind."""
    return type(module) is type(original) and any(trimming(module, original))


def is_trimmed_spec(spec: Any) -> bool:
    """Returns whether a description, from a file, is one of a module that has lost channels."""
    return isinstance(spec, list) and spec[:1] == [KIND]


def describe_trimmed(name: str, module: nn.Module, original: nn.Module) -> list[Any]:
    """Returns the description of a module that has lost channels.

    Raises:
        ModelError: where it differs in more than that.
    """
    shapes, counts = trimming(module, original)
    if list(original._modules) != list(module._modules) or tensor_names(original) != tensor_names(module):
        raise ModelError(f"{name} has other parts or tensors than the original, which a packed file cannot hold")
    for key, shape in shapes.items():
        if not getattr(module, key).is_floating_point() or not _is_smaller(shape, list(getattr(original, key).shape)):
            raise ModelError(f"{name}.{key} has shape {shape}, which is no part of the original's")
    return [KIND, shapes, counts]


def trim(name: str, spec: Any, original: nn.Module) -> None:
    """Gives a copy of an original module the shapes and counts of a description; its tensors are still to be filled.

    Args:
        name: its dotted name, for messages.
        spec: the description, from a file, hence not to be trusted.
        original: changed in place.

    Raises:
        FileFormatError: where the description is not valid.
    """
    if len(spec) != 3 or not all(isinstance(part, dict) for part in spec[1:]):
        raise FileFormatError(f"the description of {name} is not valid: the file is damaged")
    for key, shape in spec[1].items():
        old = getattr(original, key) if key in tensor_names(original) else None
        if old is None or not old.is_floating_point() or not _is_smaller(shape, list(old.shape)):
            raise FileFormatError(
                f"{name} cannot have a tensor {key!r:.60} of shape {shape!r:.60}: the file is damaged"
            )
        new = old.new_empty(shape)
        setattr(original, key, nn.Parameter(new, old.requires_grad) if key in original._parameters else new)
    for attribute, count in spec[2].items():
        old = vars(original).get(attribute)
        known = None if attribute.startswith("_") else _as_list(old)
        if known is None or not _is_smaller(_as_list(count), known):
            raise FileFormatError(f"{name}.{attribute!s:.60} cannot be {count!r:.60}: the file is damaged")
        setattr(original, attribute, tuple(count) if isinstance(old, tuple) else count)


def trimming(module: nn.Module, original: nn.Module) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Returns the shapes of tensors and the counts in which a module differs from the original, by their names."""
    shapes = {
        key: list(getattr(module, key).shape)
        for key in tensor_names(module)
        if getattr(original, key, None) is not None and getattr(module, key).shape != getattr(original, key).shape
    }
    counts = {}
    for name, value in vars(module).items():
        now, before = _as_list(value), _as_list(vars(original).get(name))
        if not name.startswith("_") and before is not None and now != before and _is_smaller(now, before):
            counts[name] = list(value) if isinstance(value, tuple) else value
    return shapes, counts


def _as_list(value: Any) -> list[int] | None:
    if type(value) is int:
        return [value]
    sizes = isinstance(value, tuple | list) and all(type(size) is int for size in value)
    return list(value) if sizes else None


def _is_smaller(sizes: Any, known: list[int]) -> bool:
    if not isinstance(sizes, list) or len(sizes) != len(known) or not all(is_count(size, 1) for size in sizes):
        return False
    return all(size <= old for size, old in zip(sizes, known, strict=True))
