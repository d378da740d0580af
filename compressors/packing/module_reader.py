"""Modules from the bytes of a file that may be hostile: nothing is trusted, nothing is executed."""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.errors import FileFormatError
from plywise.compressors.formats.weight_format import WeightFormat, weight_formats
from plywise.compressors.modules.assembly import copied
from plywise.compressors.modules.layers import native_weight, weight_of
from plywise.compressors.modules.own_forward import INSIDE, OwnForward, is_own
from plywise.compressors.modules.static_quantized import ActivationRange, StaticQuantized
from plywise.compressors.packing.byte_reader import ByteReader
from plywise.compressors.packing.module_spec import (
    CONTAINERS,
    LEAVES,
    build_leaf,
    is_count,
    leaf_settings,
    tensor_names,
)
from plywise.compressors.packing.packed_module import RANGES, is_range
from plywise.compressors.packing.packing import unpack_floats, unpack_symbols
from plywise.compressors.packing.trimmed_module import KIND, is_trimmed_spec, trim

_MAX_DEPTH = 6
_FORMAT_FAILURES = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError)


class PayloadReader(ByteReader):
    """Bytes of modules.

    Attributes:
        budget: how many numbers described modules may hold from here on; their weights can be coded in next to no
            bytes, so the file's size is no bound.
    """

    def __init__(self, data: bytes, budget: int) -> None:
        super().__init__(data)
        self.budget = budget

    def spend(self, numbers: int) -> None:
        """Counts numbers that are about to be allocated; raises FileFormatError where the budget does not reach."""
        if numbers > self.budget:
            raise FileFormatError(f"the file describes {numbers} more numbers than the network could need")
        self.budget -= numbers


def build(name: str, spec: Any, original: nn.Module, reader: PayloadReader, depth: int = 0) -> nn.Module:
    """Builds the described module and fills it with its tensors.

    Args:
        name: its dotted name, for messages.
        spec: its description, from a file, hence not to be trusted.
        original: the module whose place it takes.
        reader: stands at its tensors.
        depth: how many containers it lies in.

    Raises:
        FileFormatError: where the description or the tensors are not valid.
    """
    if is_trimmed_spec(spec):
        module = copied(original)
        trim(name, spec, module)
        fill(name, module, reader)
        return module
    if not isinstance(spec, list) or not 2 <= len(spec) <= 3 or depth > _MAX_DEPTH:
        raise FileFormatError(f"the description of {name} is not valid: the file is damaged")
    kind, inside, *fmt = spec
    if kind == "StaticQuantized":
        before, after = _read_ranges(name, reader, fmt[0] if fmt else [8, 8])
        return StaticQuantized(build(f"{name}.layer", inside, original, reader, depth + 1), before, after)
    if not isinstance(inside, dict):
        raise FileFormatError(f"the description of {name} is not valid: the file is damaged")
    if isinstance(kind, str) and kind in CONTAINERS:
        parts = CONTAINERS[kind]()
        for key, part in inside.items():
            if not (key.isidentifier() or key.isdigit()) or key in dir(parts):
                raise FileFormatError(f"{name} has a part named {key!r:.60}: the file is damaged")
            parts.add_module(key, build(f"{name}.{key}", part, original, reader, depth + 1))
        return parts
    if kind == "OwnForward":
        return _own_forward(name, inside, original, reader, depth, fmt[0] if fmt else {})
    leaf = _bare_leaf(name, kind, inside, original)
    reader.spend(sum(tensor.numel() for tensor in leaf.state_dict().values()))
    fill(name, leaf, reader, fmt[0] if fmt else None)
    return leaf


def _own_forward(
    name: str, inside: dict[str, Any], original: nn.Module, reader: PayloadReader, depth: int, shapes: Any
) -> OwnForward:
    others = {**dict(original.named_children()), INSIDE: nn.Module()}
    if not is_own(original) or list(inside) != list(others):
        raise FileFormatError(f"{name} is no layer of the user's own with these parts: the file is damaged")
    module = OwnForward(original)
    trim(name, [KIND, shapes, {}], module)
    reader.spend(sum(tensor.numel() for tensor in module.state_dict().values()))
    fill(name, module, reader)
    for key, part in inside.items():
        module.add_module(key, build(f"{name}.{key}", part, others[key], reader, depth + 1))
    return module


def fill(name: str, module: nn.Module, reader: PayloadReader, fmt: Any = None, without: Collection[str] = ()) -> None:
    """Replaces the module's own tensors by those that the reader stands at; their shapes stay.

    Args:
        name: its dotted name, for messages.
        module: what to fill; its parameters may lie on the meta device.
        reader: stands at its tensors.
        fmt: the description of its weight format, from a file, hence not to be trusted.
        without: names of tensors that it does not hold.
    """
    formatted = False
    for key in tensor_names(module):
        if key in without:
            continue
        old = getattr(module, key)
        if old.dtype != torch.float32:
            new = torch.zeros_like(old, device="cpu") if old.is_meta else old
        elif key == "weight" and fmt is not None:
            weight = _read_formatted(name, module, tuple(weight_of(module).shape), reader, fmt)
            new = native_weight(module, weight).contiguous()
            formatted = True
        else:
            new = unpack_floats(reader.block(), old.shape)
        is_parameter = key in module._parameters
        setattr(
            module, key, nn.Parameter(new, requires_grad=old.requires_grad and not formatted) if is_parameter else new
        )
    if fmt is not None and not formatted:
        raise FileFormatError(f"{name} has a weight format but no weights: the file is damaged")


def _read_ranges(name: str, reader: PayloadReader, bits: Any) -> list[ActivationRange]:
    if not isinstance(bits, list) or len(bits) != 2 or not all(is_count(value, 1) for value in bits):
        raise FileFormatError(f"{name}: activation ranges of {bits!r:.60} bits are not valid: the file is damaged")
    values = RANGES.unpack(reader.take(RANGES.size))
    ranges = [ActivationRange(values[0], values[1], bits[0]), ActivationRange(values[2], values[3], bits[1])]
    for each in ranges:
        if not is_range(each.scale, each.zero_point, each.bits):
            raise FileFormatError(f"{name}: an activation range has {each}, which is not valid: the file is damaged")
    return ranges


def _bare_leaf(name: str, kind: Any, changed: dict[str, Any], original: nn.Module) -> nn.Module:
    settings = leaf_settings(original)
    if kind is None and settings is not None:
        return build_leaf(type(original).__name__, {**settings, **changed})
    if kind is None and not changed and type(original) is not nn.Module and not list(original.children()):
        return copied(original)
    if not isinstance(kind, str) or kind not in LEAVES:
        raise FileFormatError(f"{name} is of type {kind!r:.60}; allowed are {', '.join(LEAVES)}")
    return build_leaf(kind, changed)


def _read_formatted(
    name: str, module: nn.Module, shape: tuple[int, ...], reader: PayloadReader, described: Any
) -> Tensor:
    try:
        kind, settings, shapes = described
        if not all(len(sizes) <= 8 and all(is_count(size, 0) for size in sizes) for sizes in shapes.values()):
            raise ValueError("a shape is a short list of whole numbers")
    except _FORMAT_FAILURES as error:
        raise FileFormatError(f"the weight format of {name} is not valid: the file is damaged") from error
    if not isinstance(kind, str) or kind not in weight_formats():
        raise FileFormatError(
            f"{name} has the unknown weight format {kind!r:.60}; known: {', '.join(sorted(weight_formats()))}"
        )
    reader.spend(sum(math.prod(sizes) for sizes in shapes.values()))
    packed = reader.block()
    tensors = {key: unpack_floats(reader.block(), sizes) for key, sizes in shapes.items()}
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise FileFormatError(f"the weight format of {name} holds values that are not finite: the file is damaged")
    try:
        fmt = weight_formats()[kind].restore(settings, tensors)
        weight = _decoded(fmt, packed, shape)
    except _FORMAT_FAILURES as error:
        raise FileFormatError(f"the weight format of {name} cannot be restored: {error!s:.200}") from error
    module.weight_format = fmt  # type: ignore[assignment]
    return weight


def _decoded(fmt: WeightFormat, packed: bytes, shape: tuple[int, ...]) -> Tensor:
    # One column first: tensors of a wrong shape show here, before they can blow the weights up by broadcasting.
    if not 1 <= fmt.bits <= 16:
        raise ValueError(f"it has symbols of {fmt.bits} bits")
    column = (*shape[:1], *(1 for _ in shape[1:]))
    if fmt.decode(torch.zeros(column, dtype=torch.int64)).shape != column:
        raise ValueError(f"its tensors do not fit weights of shape {shape}")
    weight = fmt.decode(unpack_symbols(packed, shape, fmt.bits))
    if weight.dtype != torch.float32 or weight.shape != shape:
        raise ValueError(f"its tensors do not fit weights of shape {shape}")
    return weight
