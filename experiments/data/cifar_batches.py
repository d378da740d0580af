"""CIFAR-10 in its two original forms (https://www.cs.toronto.edu/~kriz/cifar.html).

The "python version" is made of pickles, which may run code when they are loaded. They are read here by an
unpickler that knows three names and builds inert records for them; any other name is refused.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plywise.compressors.errors import DataError
from plywise.experiments.data.splits import LabelledImages

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILES = ("test_batch",)
VALUES = 3 * 32 * 32
MOST_BYTES = 1 << 28
"""Of a batch, whose originals have 31 million."""
DOWNLOAD = "it is damaged: download it again"


def read_python_batches(folder: Path) -> tuple[LabelledImages, LabelledImages]:
    """Reads training and test images from `cifar-10-batches-py`; raises DataError on missing or bad files."""
    return _read(folder, "", _python_batch)


def read_binary_batches(folder: Path) -> tuple[LabelledImages, LabelledImages]:
    """Reads training and test images from `cifar-10-batches-bin`; raises DataError on missing or bad files."""
    return _read(folder, ".bin", _binary_batch)


def _read(folder: Path, suffix: str, read: Any) -> tuple[LabelledImages, LabelledImages]:
    parts = []
    for names in (TRAIN_FILES, TEST_FILES):
        paths = [folder / f"{name}{suffix}" for name in names]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise DataError(f"{folder} lacks {', '.join(missing)}; download CIFAR-10 again")
        large = [path.name for path in paths if path.stat().st_size > MOST_BYTES]
        if large:
            raise DataError(f"{folder}: {large[0]} has more than {MOST_BYTES:,} bytes; {DOWNLOAD}")
        batches = [read(path) for path in paths]
        images = torch.cat([torch.from_numpy(values) for values, _ in batches]).view(-1, 3, 32, 32)
        parts.append(LabelledImages(images, torch.cat([torch.from_numpy(labels) for _, labels in batches])))
    return parts[0], parts[1]


def _binary_batch(path: Path) -> tuple[Any, Any]:
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if len(content) == 0 or len(content) % (1 + VALUES):
        raise DataError(f"{path} has {len(content)} bytes, not a multiple of {1 + VALUES}; {DOWNLOAD}")
    rows = content.reshape(-1, 1 + VALUES)
    return _checked(path, rows[:, 1:].copy(), rows[:, 0].astype(np.int64))


def _python_batch(path: Path) -> tuple[Any, Any]:
    try:
        record = _InertUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        values = record[b"data"].array()
        labels = np.array([int(label) for label in record[b"labels"]], np.int64)
    except DataError as error:
        raise DataError(f"{path} is refused: {error}") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{path} is no CIFAR-10 batch ({error}); {DOWNLOAD}") from error
    return _checked(path, values, labels)


def _checked(path: Path, values: Any, labels: Any) -> tuple[Any, Any]:
    if values.shape != (len(labels), VALUES) or len(labels) == 0 or labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path} holds values {values.shape} for {len(labels)} labels from 0 to 9; {DOWNLOAD}")
    return values, labels


class _Record:
    """Takes the place of numpy's array and dtype: holds what the file says and does nothing."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> Any:
        _, shape, dtype, fortran_order, content = self.state
        if dtype.arguments[0] not in (b"u1", "u1") or fortran_order is True:
            raise ValueError("the data are not bytes in row order")
        return np.frombuffer(content, np.uint8).reshape(shape).copy()


class _InertUnpickler(pickle.Unpickler):
    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in self.ALLOWED:
            raise DataError(
                f"it asks for {module_name}.{global_name}, which no CIFAR-10 batch needs and which may run code"
            )
        return _Record
