"""The packed weights of a compressed network: one safetensors file, small, exact and safe to load.

The file holds one tensor of bytes, for the usual header of a hundred bytes for each tensor would outweigh many a
compressed layer. Inside: a mark for each module of the original network, a compressed description of the modules
that differ from it, then all tensors. The network's code is not in the file: the original is needed to load it.
The attention of torch counts as the linear layers that it was taken apart into, see `projected_attention`.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plywise.compressors.errors import FileFormatError, ModelError
from plywise.compressors.formats.tied_weight import tied
from plywise.compressors.modules.assembly import answer_as, copied
from plywise.compressors.modules.projected_attention import with_projections
from plywise.compressors.packing.byte_reader import with_length
from plywise.compressors.packing.module_reader import PayloadReader, build, fill
from plywise.compressors.packing.module_spec import leaf_settings, module_mark, tensor_names, unstorable
from plywise.compressors.packing.packed_container import read_container, write_container
from plywise.compressors.packing.packed_module import (
    PRESET,
    compressed_json,
    describe,
    is_altered,
    own_blocks,
    parts_of,
    tensor_blocks,
)
from plywise.compressors.packing.trimmed_module import describe_trimmed, is_trimmed, is_trimmed_spec, trim

_GROWTH = 4
"""By what factor described modules may hold more numbers than the whole original."""
_SPARE = 2**16

TIED = "Tied"
"""First entry of what is said of a module whose weight is that of one before it: `["Tied", its place]`."""


def save_packed(model: nn.Module, skeleton: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> int:
    """Writes the packed weights of a compressed network, atomically.

    Args:
        model: the compressed network; it may differ from `skeleton` as the techniques make it differ.
        skeleton: the original network; its weights do not matter.
        path: of the file, usually `weights.safetensors`.
        metadata: plain texts that `read_metadata` returns.

    Returns:
        The bytes of the file.

    Raises:
        ModelError: where the model differs from `skeleton` in a way that the file cannot hold.
        ConfigurationError: where `metadata` holds anything but texts, or one of the file's own keys.
    """
    skeleton, writer = with_projections(skeleton), _Writer()
    writer.visit("", skeleton, model)
    marks = bytes(mark for _, mark in _marks(skeleton))
    parts = [_fingerprint(skeleton), with_length(marks), with_length(compressed_json(writer.entries)), *writer.blocks]
    return write_container(Path(path), metadata, b"".join(parts))


def load_packed(path: str | Path, skeleton: nn.Module) -> nn.Module:
    """Returns the network of a packed file as a new module in eval mode.

    Parameters equal those that were saved bit for bit, but for the sign of a zero, and so do the outputs. Weights that
    were tied are tied again.

    Args:
        path: of a file that `save_packed` wrote; it may come from anyone.
        skeleton: the original network; it stays as it is, its weights do not matter.

    Raises:
        FileFormatError: where the file is missing, damaged, hostile, of another version or of another network.
    """
    skeleton = with_projections(skeleton)
    numbers = sum(tensor.numel() for tensor in skeleton.state_dict().values())
    _, payload = read_container(Path(path), limit=16 * numbers + 2**20)
    reader = PayloadReader(payload, _GROWTH * numbers + _SPARE)
    _check_skeleton(reader.take(4), reader.block(), skeleton)
    loader = _Loader(reader, _entries(reader.block(), limit=2**16 + 2**12 * len(list(skeleton.modules()))))
    model = loader.visit("", copied(skeleton))
    if loader.entries or len(reader):
        raise FileFormatError(f"{path} holds more than this network: the file is damaged or of another network")
    return model.eval()


def read_metadata(path: str | Path) -> dict[str, str]:
    """Returns the metadata that `save_packed` was given; raises FileFormatError on a damaged file."""
    return read_container(Path(path), limit=0)[0]


class _Writer:
    """Walks original and model side by side; notes what differs and collects the tensors."""

    def __init__(self) -> None:
        self.entries: list[list[Any]] = []
        self.blocks: list[bytes] = []
        self._seen: dict[int, nn.Module] = {}
        self._owners: dict[int, tuple[int, nn.Parameter]] = {}
        self._last = 0

    def visit(self, name: str, original: nn.Module, module: nn.Module) -> None:
        if id(original) in self._seen:
            self._check_shared(name, original, module)
            return
        index = len(self._seen)
        self._seen[id(original)] = module
        owner = self._owner(index, original, module)
        if owner is not None:
            self.entries.append([index - self._last, [TIED, owner]])
            self._last = index
            self.blocks.extend(own_blocks(name, module, without=("weight",)))
            return
        if is_altered(module, original):
            self.entries.append([index - self._last, describe(name, module, original)])
            self._last = index
            self.blocks.extend(tensor_blocks(name, module))
            return
        if is_trimmed(module, original):
            self.entries.append([index - self._last, describe_trimmed(name, module, original)])
            self._last = index
        else:
            _check_same(name, original, module)
        self.blocks.extend(own_blocks(name, module))
        for key, child in parts_of(original):
            self.visit(_join(name, key), child, getattr(module, key))

    def _owner(self, index: int, original: nn.Module, module: nn.Module) -> int | None:
        """Returns which module before this one has the same weight, in the original and now."""
        before, now = original._parameters.get("weight"), module._parameters.get("weight")
        if before is None or now is None or type(module) is not type(original):
            return None
        place, weight = self._owners.setdefault(id(before), (index, now))
        return place if place != index and weight is now else None

    def _check_shared(self, name: str, original: nn.Module, module: nn.Module) -> None:
        if self._seen[id(original)] is not module and module.state_dict():
            raise ModelError(
                f"{name}: the original uses this module in several places, the compressed network does not"
            )


class _Loader:
    """Walks a copy of the original in the order of the writer and puts the file's modules and tensors in place."""

    def __init__(self, reader: PayloadReader, entries: dict[int, Any]) -> None:
        self.entries = entries
        self._reader = reader
        self._seen: dict[int, tuple[nn.Module, nn.Module]] = {}

    def visit(self, name: str, original: nn.Module) -> nn.Module:
        if id(original) in self._seen:
            return self._seen[id(original)][1]
        index = len(self._seen)
        spec = self.entries.pop(index, None)
        if isinstance(spec, list) and spec[:1] == [TIED]:
            self._seen[id(original)] = original, original
            fill(name, original, self._reader, without=("weight",))
            module = self._tied(name, original, spec)
            self._seen[id(original)] = original, module
            return module
        if is_trimmed_spec(spec):
            trim(name, spec, original)
            spec = None
        # The original is kept, else its id could be that of another module later.
        self._seen[id(original)] = original, original
        if spec is not None:
            module = build(name, spec, original, self._reader)
            answer_as(module, original)
            self._seen[id(original)] = original, module
            return module
        fill(name, original, self._reader)
        for key, child in parts_of(original):
            setattr(original, key, self.visit(_join(name, key), child))
        return original

    def _tied(self, name: str, original: nn.Module, spec: list[Any]) -> nn.Module:
        built = [module for _, module in self._seen.values()][:-1]
        place = spec[1] if len(spec) == 2 and type(spec[1]) is int and 0 <= spec[1] < len(built) else None
        before = original._parameters.get("weight")
        weight = None if place is None else built[place]._parameters.get("weight")
        if place is None or before is None or weight is None or weight.shape != before.shape:
            raise FileFormatError(f"{name} cannot have the weight that the file says: the file is damaged")
        return tied(original, built[place])


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _check_same(name: str, original: nn.Module, module: nn.Module) -> None:
    if list(original._modules) != list(module._modules) or tensor_names(original) != tensor_names(module):
        raise unstorable(name, module)
    for key in tensor_names(original):
        old, new = getattr(original, key), getattr(module, key)
        if old.shape != new.shape:
            raise ModelError(f"{name}.{key} has shape {tuple(new.shape)}, in the original {tuple(old.shape)}")
        if not new.is_floating_point() and key != "num_batches_tracked" and not torch.equal(old, new):
            raise ModelError(f"{name}.{key} differs from the original; a packed file holds no whole numbers")


def _marks(skeleton: nn.Module) -> list[tuple[str, int]]:
    """Returns the name and the one-byte mark of each module that a technique could change."""
    found = [(name, module) for name, module in skeleton.named_modules() if _is_marked(module)]
    return [(name, zlib.crc32(module_mark(name, module).encode()) % 256) for name, module in found]


def _is_marked(module: nn.Module) -> bool:
    return leaf_settings(module) is not None or bool(tensor_names(module))


def _fingerprint(skeleton: nn.Module) -> bytes:
    text = "\n".join(module_mark(name, module) for name, module in skeleton.named_modules())
    return struct.pack("<I", zlib.crc32(text.encode()))


def _check_skeleton(fingerprint: bytes, marks: bytes, skeleton: nn.Module) -> None:
    if fingerprint == _fingerprint(skeleton):
        return
    known = _marks(skeleton)
    for (name, mark), stored in zip(known, marks, strict=False):
        if mark != stored:
            raise FileFormatError(
                f"the file is of another network: it does not fit {name} ({skeleton.get_submodule(name)!s:.100}); "
                "give the network that was compressed"
            )
    where = f"it has {len(marks)} layers, the given network {len(known)}"
    if len(marks) == len(known):
        where = "modules without weights differ"
    raise FileFormatError(f"the file is of another network: {where}; give the network that was compressed")


def _entries(data: bytes, limit: int) -> dict[int, Any]:
    unpacker = zlib.decompressobj(wbits=-15, zdict=PRESET)
    try:
        text = unpacker.decompress(data, limit)
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError("it is too long or does not end")
        found, index = {}, 0
        for step, spec in json.loads(text):
            index += step
            if type(step) is not int or step < 0 or index in found:
                raise ValueError("modules are out of order")
            found[index] = spec
    except (ValueError, TypeError, zlib.error, RecursionError) as error:
        raise FileFormatError(f"the description of the modules cannot be read: {error!s:.100}") from error
    return found
