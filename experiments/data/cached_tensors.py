"""Tensors in cached safetensors files: written atomically, made again where they are damaged."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from plywise.compressors.atomic_file import write_atomically


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors to `path`; the file never holds half of them."""
    # Copies, for safetensors refuses tensors that share their memory, as tied weights do.
    whole = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    write_atomically(path, save(whole))


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """Reads tensors from a cached file; None where it is missing or damaged, so that the caller makes it again."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None
