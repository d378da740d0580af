"""Tensors in cached safetensors files: written atomically, made again where they are damaged."""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors to `path`, which never holds half a file: a temporary file takes its place at the end."""
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
            file.close()
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """Reads tensors from a cached file; None where it is missing or damaged, so that the caller makes it again."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None
