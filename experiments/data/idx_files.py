"""MNIST's own file format: gzipped IDX (http://yann.lecun.com/exdb/mnist, section "File formats")."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plywise.compressors.errors import DataError
from plywise.experiments.data.splits import LabelledImages

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
UNSIGNED_BYTE = 8

MOST_VALUES = 1 << 31
"""Of a file, in memory: forty times as many as MNIST's."""


def read_mnist(folder: Path) -> tuple[LabelledImages, LabelledImages]:
    """Reads training and test images of MNIST, or of a dataset in the same form with ten classes.

    Raises:
        DataError: a file is missing, damaged or does not fit its partner.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}; 'mnist:PATH' needs a folder with {', '.join(FILES)}")
    train_images, train_labels, test_images, test_labels = (folder / name for name in FILES)
    return _pair(train_images, train_labels), _pair(test_images, test_labels)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Reads a gzipped IDX file of bytes as a uint8 tensor.

    Raises:
        DataError: the file is empty, truncated or not of this form.
    """
    header = 4 + 4 * dimensions
    try:
        with gzip.open(path) as file:
            content = file.read(header)
            shape = [int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(1, dimensions + 1)]
            if math.prod(shape) <= MOST_VALUES:
                content += file.read(math.prod(shape) + 1)  # one more than there should be, never all that is there
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); it is damaged or no gzip file: download it again") from error
    if len(content) < header or content[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)):
        raise DataError(f"{path} is no IDX file of bytes with {dimensions} dimension(s); download it again")
    held = len(content) - header
    if held != math.prod(shape) or 0 in shape:
        which = "more" if held > math.prod(shape) else "others" if math.prod(shape) > MOST_VALUES else str(held)
        raise DataError(
            f"{path} announces {math.prod(shape)} values {tuple(shape)} but holds {which}; "
            "it is empty or damaged: download it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy()).view(shape)


def _pair(images_path: Path, labels_path: Path) -> LabelledImages:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(f"{images_path} holds {len(images)} images but {labels_path} holds {len(labels)} labels")
    if labels.max() > 9:
        raise DataError(f"{labels_path} holds the label {int(labels.max())}; labels must lie between 0 and 9")
    return LabelledImages(images.unsqueeze(1), labels.to(torch.int64))
