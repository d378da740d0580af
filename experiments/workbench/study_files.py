"""Where studies find data that Plywise does not bring along: in the folder that `PLYWISE_DATA` names."""

import os
from pathlib import Path

from plywise.compressors.errors import DataError

FOLDER = "PLYWISE_DATA"
"""The environment variable."""


def resnet_files() -> tuple[Path, str]:
    """Returns the file of ResNet-20's weights, and the dataset as `load_dataset` takes it.

    Raises:
        DataError: if `PLYWISE_DATA` does not name the folder that holds both.
    """
    weights, images = _found("zoo/resnet20-cifar10.safetensors"), _found("cifar10-jpeg.zip")
    return weights, f"cifar10:{images}"


def mnist_files() -> str:
    """Returns MNIST as `load_dataset` takes it.

    Raises:
        DataError: if `PLYWISE_DATA` does not name the folder that holds it.
    """
    return f"mnist:{_found('mnist')}"


def _found(name: str) -> Path:
    path = Path(os.environ.get(FOLDER, "")) / name
    if FOLDER not in os.environ or not path.exists():
        raise DataError(f"{FOLDER} is {os.environ.get(FOLDER, 'not set')!r}; set it to the folder that holds {name}")
    return path
