"""One module as bytes: a description where it differs from the original, then its tensors.

Biases, scales and normalisation are stored as they are; weights are packed: as the symbols of their format where
they have one, else as floats whose zeros cost little.
"""

import json
import math
import struct
import zlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.errors import ModelError
from plywise.compressors.formats.weight_format import WeightFormat, weight_format
from plywise.compressors.modules.channel_order import ChannelOrder
from plywise.compressors.modules.layers import weight_of
from plywise.compressors.modules.own_forward import INSIDE, OwnForward
from plywise.compressors.modules.static_quantized import StaticQuantized
from plywise.compressors.packing.byte_reader import length_size, with_length
from plywise.compressors.packing.module_spec import container_name, leaf_settings, tensor_names, unstorable
from plywise.compressors.packing.packing import (
    floats_size,
    pack_floats,
    pack_symbols,
    symbols_size,
)
from plywise.compressors.packing.trimmed_module import describe_trimmed, is_trimmed, trimming

Spec = list[Any]
"""A module in JSON: `[type or null for the original's, settings that differ, weight format]` for a leaf,
`["Sequential" or "Branches", {name: spec}]` and `["StaticQuantized", spec, bits of input and output unless 8]` for the
containers; `["OwnForward", {name: spec}, shapes of the user's tensors that have lost channels, if any]`, whose plain
layer is described in full; and what `trimmed_module` says."""

PRESET = (
    b'["Embedding",["ConvTranspose1d",["Conv1d",["BatchNorm2d",{"num_features":,"eps":1e-05,"momentum":0.1,'
    b'"affine":true,"track_running_stats":true}]],["Linear",{"in_features":64,"out_features":10,"bias":true}'
    b'"zero_point":["uniform",{"width":8,"symmetric":false}[1,["Sequential",{"0":["Conv2d",{"in_channels":16,'
    b'"out_channels":32,"kernel_size":[3,3],"stride":[1,1],"padding":[1,1],"dilation":[1,1],"groups":1,"bias":false,'
    b'"padding_mode":"zeros"}]],"1":[1,["StaticQuantized",[null,{"out_channels":16,"bias":true},["uniform",{"width":4,'
    b'"symmetric":true},{"scale":[16]}]]],[1,["Identity",{}]],[1,[null,{"bias":true},["uniform",{"width":3,'
)
"""What descriptions are mostly made of: the preset dictionary of their compression."""

_MARK_BYTES = 1
_DESCRIPTION_BYTES = 3
RANGES = struct.Struct("<dBdB")


def compressed_json(value: Any) -> bytes:
    """Returns a JSON value as few bytes."""
    packer = zlib.compressobj(9, wbits=-15, zdict=PRESET)
    return packer.compress(json.dumps(value, separators=(",", ":")).encode()) + packer.flush()


def is_altered(module: nn.Module, original: nn.Module) -> bool:
    """Returns whether the module needs a description to be rebuilt from the original."""
    if isinstance(module, StaticQuantized) or weight_format(module) is not None:
        return True
    if (container := container_name(module)) is not None:
        return container != container_name(original) or list(module._modules) != list(original._modules)
    return type(module) is not type(original) or leaf_settings(module) != leaf_settings(original)


def describe(name: str, module: nn.Module, original: nn.Module) -> Spec:
    """Returns the description of a module that stands in the place of `original`.

    Raises:
        ModelError: where its type is not among those that a file may hold.
    """
    if isinstance(module, StaticQuantized):
        bits = [module.input_range.bits, module.output_range.bits]
        inner = describe(f"{name}.layer", module.layer, original)
        return ["StaticQuantized", inner] if bits == [8, 8] else ["StaticQuantized", inner, bits]
    if (container := container_name(module)) is not None:
        parts = {key: describe(f"{name}.{key}", part, original) for key, part in parts_of(module)}
        return [container, parts]
    if isinstance(module, OwnForward):
        others = {**dict(original.named_children()), INSIDE: nn.Module()}
        parts = {key: describe(f"{name}.{key}", part, others[key]) for key, part in parts_of(module)}
        shapes = trimming(module, original)[0]
        return [OwnForward.__name__, parts, shapes] if shapes else [OwnForward.__name__, parts]
    if leaf_settings(original) is None and not list(module.children()) and is_trimmed(module, original):
        return describe_trimmed(name, module, original)
    settings, known = leaf_settings(module), leaf_settings(original) or {}
    same_type = type(module) is type(original)
    if (settings is None and not same_type) or list(module.children()):
        raise unstorable(name, module)
    settings = settings or {}
    if same_type:
        settings = {key: value for key, value in settings.items() if value != known[key]}
    spec: Spec = [None if same_type else type(module).__name__, settings]
    fmt = weight_format(module)
    if fmt is not None:
        shapes = {key: list(tensor.shape) for key, tensor in fmt.tensors().items()}
        spec.append([fmt.name, dict(fmt.settings()), shapes])
    return spec


def tensor_blocks(name: str, module: nn.Module) -> Iterator[bytes]:
    """Yields the tensors of a described module: its own, then those of its parts."""
    yield from own_blocks(name, module)
    for key, part in parts_of(module):
        yield from tensor_blocks(f"{name}.{key}", part)


def own_blocks(name: str, module: nn.Module, without: Collection[str] = ()) -> Iterator[bytes]:
    """Yields the module's own tensors, `without` some, in the order in which they are read back.

    Raises:
        ModelError: where weights are no values of their format, or a tensor cannot be stored.
    """
    if isinstance(module, StaticQuantized):
        yield _ranges_bytes(name, module)
    fmt = weight_format(module)
    for key, tensor in float_tensors(name, module).items():
        if key in without:
            continue
        if key == "weight" and fmt is not None:
            yield with_length(pack_symbols(_symbols(name, weight_of(module), fmt), fmt.bits))
            for extra in fmt.tensors().values():
                yield with_length(pack_floats(extra.float()))
        else:
            yield with_length(pack_floats(tensor))


def parts_of(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns the module's children by name; unlike `named_children`, also one that occurs twice."""
    return [(key, part) for key, part in module._modules.items() if part is not None]


def float_tensors(name: str, module: nn.Module) -> dict[str, Tensor]:
    """Returns the module's own parameters and lasting buffers, without those of whole numbers.

    Raises:
        ModelError: where one is neither float32 nor of whole numbers.
    """
    found = {}
    for key in tensor_names(module):
        tensor = getattr(module, key).detach()
        if tensor.dtype == torch.float32:
            found[key] = tensor.cpu()
        elif tensor.is_floating_point() or tensor.is_complex():
            raise ModelError(f"{name}.{key} is {tensor.dtype}; a packed file holds float32: call model.float() first")
    return found


def is_range(scale: float, zero_point: int, bits: int) -> bool:
    """Returns whether an activation range can be stored: a positive, finite scale and a code of at most 8 bits."""
    return math.isfinite(scale) and scale > 0 and 1 <= bits <= 8 and 0 <= zero_point < 2**bits


def packed_size(module: nn.Module) -> int:
    """Returns the bytes that a module takes in a packed file, to a few bytes, without coding it.

    Args:
        module: a leaf or any tree of modules.
    """
    fmt = weight_format(module)
    total = RANGES.size if isinstance(module, StaticQuantized) else 0
    for key, tensor in float_tensors("", module).items():
        if key == "weight" and fmt is not None:
            symbols = fmt.encode(weight_of(module))
            blocks = [symbols_size(symbols, fmt.bits), *map(floats_size, fmt.tensors().values())]
            total += sum(size + length_size(size) for size in blocks)
        else:
            size = floats_size(tensor)
            total += size + length_size(size)
    if isinstance(module, ChannelOrder):
        total += len(compressed_json(module.order))
    if total or leaf_settings(module) is not None:
        total += _MARK_BYTES
    if fmt is not None or isinstance(module, StaticQuantized | nn.Identity):
        total += _DESCRIPTION_BYTES
    return total + sum(packed_size(child) for _, child in parts_of(module))


def _symbols(name: str, weight: Tensor, fmt: WeightFormat) -> Tensor:
    symbols = fmt.encode(weight)
    if not torch.equal(fmt.decode(symbols), weight):
        raise ModelError(
            f"{name}: the weights are not values of their format ({fmt.name}, {fmt.bits} bits); "
            "quantise the layer again after changing its weights"
        )
    return symbols


def _ranges_bytes(name: str, module: StaticQuantized) -> bytes:
    ranges = (module.input_range, module.output_range)
    for each in ranges:
        if not is_range(each.scale, each.zero_point, each.bits):
            raise ModelError(f"{name}: {each} needs a positive, finite scale and a zero point of at most 8 bits")
    return RANGES.pack(*(value for each in ranges for value in (each.scale, each.zero_point)))
