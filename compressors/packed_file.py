"""The packed weights of a compressed network: one safetensors file, small, exact and safe to load.

The file holds one tensor of bytes, for the usual header of a hundred bytes for each tensor would outweigh many a
compressed layer. Inside: a mark for each module of the original network, a compressed description of the modules
that differ from it, then all tensors. The network's code is not in the file: the original is needed to load it.
"""

import copy
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from plywise.compressors.byte_reader import with_length
from plywise.compressors.errors import ConfigurationError, FileFormatError, ModelError
from plywise.compressors.module_reader import PayloadReader, build, fill
from plywise.compressors.module_spec import leaf_settings, module_mark, unstorable
from plywise.compressors.packed_module import (
    PRESET,
    compressed_json,
    describe,
    float_tensors,
    is_altered,
    own_blocks,
    tensor_blocks,
    tensor_names,
)

FORMAT_VERSION = "1"
_VERSION_KEY, _CHECKSUM_KEY = "plywise_format", "sha256"
_TENSOR = "payload"
_MAX_HEADER = 2**20
_GROWTH = 4
"""By what factor described modules may hold more numbers than the whole original."""
_SPARE = 2**16


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
    writer = _Writer()
    writer.visit("", skeleton, model)
    marks = bytes(mark for _, mark in _marks(skeleton))
    parts = [_fingerprint(skeleton), with_length(marks), with_length(compressed_json(writer.entries)), *writer.blocks]
    payload = b"".join(parts)
    content = _header(metadata, payload) + payload
    _write_atomically(Path(path), content)
    return len(content)


def load_packed(path: str | Path, skeleton: nn.Module) -> nn.Module:
    """Returns the network of a packed file as a new module in eval mode.

    Args:
        path: of a file that `save_packed` wrote; it may come from anyone.
        skeleton: the original network; it stays as it is, its weights do not matter.

    Raises:
        FileFormatError: where the file is missing, damaged, hostile, of another version or of another network.
    """
    numbers = sum(tensor.numel() for tensor in skeleton.state_dict().values())
    _, payload = _read(Path(path), limit=16 * numbers + 2**20)
    reader = PayloadReader(payload, _GROWTH * numbers + _SPARE)
    _check_skeleton(reader.take(4), reader.block(), skeleton)
    loader = _Loader(reader, _entries(reader.block(), limit=2**16 + 2**12 * len(list(skeleton.modules()))))
    model = loader.visit("", copy.deepcopy(skeleton))
    if loader.entries or len(reader):
        raise FileFormatError(f"{path} holds more than this network: the file is damaged or of another network")
    return model.eval()


def read_metadata(path: str | Path) -> dict[str, str]:
    """Returns the metadata that `save_packed` was given; raises FileFormatError on a damaged file."""
    return _read(Path(path), limit=0)[0]


def file_overhead(skeleton: nn.Module, metadata: Mapping[str, str]) -> int:
    """Returns the bytes of a packed file that belong to no module."""
    return len(_header(metadata, b"")) + len(_fingerprint(skeleton)) + 16


class _Writer:
    """Walks original and model side by side; notes what differs and collects the tensors."""

    def __init__(self) -> None:
        self.entries: list[list[Any]] = []
        self.blocks: list[bytes] = []
        self._seen: dict[int, nn.Module] = {}
        self._last = 0

    def visit(self, name: str, original: nn.Module, module: nn.Module) -> None:
        if id(original) in self._seen:
            self._check_shared(name, original, module)
            return
        index = len(self._seen)
        self._seen[id(original)] = module
        if is_altered(module, original):
            self.entries.append([index - self._last, describe(name, module, original)])
            self._last = index
            self.blocks.extend(tensor_blocks(name, module))
            return
        _check_same(name, original, module)
        self.blocks.extend(own_blocks(name, module))
        for key, child in original.named_children():
            self.visit(_join(name, key), child, getattr(module, key))

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
        spec = self.entries.pop(len(self._seen), None)
        # The original is kept, else its id could be that of another module later.
        self._seen[id(original)] = original, original
        if spec is not None:
            module = build(name, spec, original, self._reader)
            self._seen[id(original)] = original, module
            return module
        fill(name, original, self._reader)
        for key, child in list(original.named_children()):
            setattr(original, key, self.visit(_join(name, key), child))
        return original


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


def _header(metadata: Mapping[str, str], payload: bytes) -> bytes:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str) or key in (_VERSION_KEY, _CHECKSUM_KEY):
            raise ConfigurationError(
                f"metadata {key!r}: {value!r} cannot be stored: keys and values are texts, "
                f"and {_VERSION_KEY!r} and {_CHECKSUM_KEY!r} are the file's own"
            )
    stored = {**metadata, _VERSION_KEY: FORMAT_VERSION}
    digest = _digest(stored)
    digest.update(payload)
    stored[_CHECKSUM_KEY] = digest.hexdigest()
    size = len(payload)
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    text = json.dumps({"__metadata__": stored, _TENSOR: tensor}, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _digest(metadata: Mapping[str, str]) -> "hashlib._Hash":
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())


def _write_atomically(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path, limit: int) -> tuple[dict[str, str], bytes]:
    """Returns the metadata and at most `limit` bytes of payload, both checked against the checksum."""
    try:
        with path.open("rb") as file:
            metadata, size = _read_header(path, file)
            start = file.tell()
            checksum = metadata.pop(_CHECKSUM_KEY)
            if hashlib.file_digest(file, lambda: _digest(metadata)).hexdigest() != checksum:
                raise FileFormatError(f"{path} is damaged: its checksum does not fit; fetch or make it again")
            file.seek(start)
            if 0 < limit < size:
                raise FileFormatError(f"{path} holds {size} bytes, more than this network could need: wrong network?")
            metadata.pop(_VERSION_KEY)
            return metadata, file.read(limit)
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from error


def _read_header(path: Path, file: BinaryIO) -> tuple[dict[str, str], int]:
    total = os.fstat(file.fileno()).st_size
    head = file.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 0 < length <= min(_MAX_HEADER, total - 8):
        raise FileFormatError(f"{path} is no packed file: {total} bytes without a valid header; is it truncated?")
    try:
        header = json.loads(file.read(length))
        metadata = header["__metadata__"]
        version, checksum = metadata[_VERSION_KEY], metadata[_CHECKSUM_KEY]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FileFormatError(f"{path} is no packed file: its header cannot be read") from error
    if version != FORMAT_VERSION:
        raise FileFormatError(f"{path} has the format version {version!r:.20}; this version reads {FORMAT_VERSION!r}")
    size = total - 8 - length
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    if header != {"__metadata__": metadata, _TENSOR: tensor} or not isinstance(checksum, str):
        raise FileFormatError(f"{path} does not hold the one block of {size} bytes it should: is it truncated?")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise FileFormatError(f"{path} has metadata that are not texts: the file is damaged")
    return metadata, size
