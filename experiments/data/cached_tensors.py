"""Tensors in cached safetensors files: written atomically, with a checksum, made again where they are damaged."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from plywise.compressors.atomic_file import write_atomically
from plywise.env.storage.cache import tell_damaged

CHECKSUM = "sha256"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors to `path`; the file never holds half of them."""
    # Copies, for safetensors refuses tensors that share their memory, as tied weights do.
    whole = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    write_atomically(path, save(whole, {CHECKSUM: _checksum(whole)}))


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """Reads tensors from a cached file; None where it is missing or damaged, with a note, so that it is made again."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get(CHECKSUM)
        if expected is None:  # of an earlier version
            return None
        tensors = load_file(path)
        if _checksum(tensors) == expected:
            return tensors
    except (OSError, SafetensorError, ValueError):
        pass
    tell_damaged(str(path))
    return None


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Returns the hash of names, types, shapes and all bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # (bytes,)
    return digest.hexdigest()
