"""Where the studies of ResNet-20 find the network and its images: in the folder that `PLYWISE_DATA` names."""

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
    folder = Path(os.environ.get(FOLDER, ""))
    weights, images = folder / "zoo/resnet20-cifar10.safetensors", folder / "cifar10-jpeg.zip"
    if FOLDER not in os.environ or not (weights.is_file() and images.is_file()):
        raise DataError(
            f"{FOLDER} is {os.environ.get(FOLDER, 'not set')!r}; set it to the folder that holds {images.name} and "
            f"zoo/{weights.name}"
        )
    return weights, f"cifar10:{images}"
