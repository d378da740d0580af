"""The datasets that a spec can name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from plywise.compressors.errors import DataError, unknown_name
from plywise.experiments.data.cifar_batches import CLASSES, read_binary_batches, read_python_batches
from plywise.experiments.data.dataset import Dataset
from plywise.experiments.data.idx_files import read_mnist
from plywise.experiments.data.image_folder import read_image_folder
from plywise.experiments.data.normalisation import USUAL, Normalisation
from plywise.experiments.data.splits import LabelledImages, assemble

DIGITS_COUNT = 360
"""Test and validation images of the digits: a fifth of all images each."""
CIFAR10_NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), USUAL)
"""That of ImageNet, which many use for CIFAR-10 too; others use the moments of CIFAR-10 itself."""
CIFAR10_VALIDATION_COUNT = 5000
DIGIT_NAMES = tuple(map(str, range(10)))


def load_dataset(spec: str, seed: int = 0, normalisation: Normalisation | None = None) -> Dataset:
    """Loads a dataset.

    Args:
        spec: `digits`; `mnist:PATH` with the folder of the four IDX files; `cifar10:PATH` with an image folder,
            plain or zipped, or the folder of the original batches; `folder:PATH` with an image folder, plain or
            zipped.
        seed: of the cut between training and validation images. The test images do not depend on it.
        normalisation: of the images; the dataset's usual one, or that of its training split, where None.

    Raises:
        ConfigurationError: the spec names no dataset, or the normalisation is for other channels.
        DataError: the files are missing, damaged or do not fit together.
    """
    name, colon, location = spec.partition(":")
    if name == "digits":
        if colon:
            raise DataError(f"{spec!r}: the digits are built in and take no path; write 'digits'")
        return _digits(seed).normalised(normalisation)
    if name not in READERS:
        raise unknown_name("dataset", name, ["digits", *READERS])
    path = Path(location).expanduser()
    if not location or not path.exists():
        raise DataError(
            f"{spec!r}: {f'{path} does not exist' if location else 'a path is missing'}; "
            f"write '{name}:PATH' with the path of the data, or 'digits' for data that are built in"
        )
    return READERS[name](path, seed).normalised(normalisation)


def _digits(seed: int) -> Dataset:
    digits = load_digits()
    levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # the images have levels 0 to 16
    images = torch.from_numpy(levels).unsqueeze(1)
    everything = LabelledImages(images, torch.from_numpy(digits.target).to(torch.int64))
    train, test = everything.cut(DIGITS_COUNT, seed=0)
    return assemble("digits", DIGIT_NAMES, train, test, seed=seed, validation_count=DIGITS_COUNT)


def _mnist(path: Path, seed: int) -> Dataset:
    return assemble("mnist", DIGIT_NAMES, *read_mnist(path), seed=seed)


def _cifar10(path: Path, seed: int) -> Dataset:
    classes: tuple[str, ...] = CLASSES
    for folder in (path, path / "cifar-10-batches-py", path / "cifar-10-batches-bin"):
        if (folder / "data_batch_1").exists():
            train, test = read_python_batches(folder)
            break
        if (folder / "data_batch_1.bin").exists():
            train, test = read_binary_batches(folder)
            break
    else:
        classes, parts = read_image_folder(path)
        train, test = parts["train"], parts.get("test") or parts["val"]
    shape = tuple(train.images.shape[1:])
    if shape != (3, 32, 32) or len(classes) != 10:
        raise DataError(
            f"{path} holds {len(classes)} classes of {shape} images, but CIFAR-10 has 10 of (3, 32, 32); "
            f"write 'folder:{path}' for other images"
        )
    return assemble(
        "cifar10",
        classes,
        train,
        test,
        seed=seed,
        validation_count=min(CIFAR10_VALIDATION_COUNT, len(train.labels) // 10),
        normalisation=CIFAR10_NORMALISATION,
    )


def _folder(path: Path, seed: int) -> Dataset:
    classes, parts = read_image_folder(path)
    if "test" in parts:
        return assemble("folder", classes, parts["train"], parts["test"], parts.get("val"), seed=seed)
    return assemble("folder", classes, parts["train"], parts["val"], seed=seed)


READERS: dict[str, Callable[[Path, int], Dataset]] = {"mnist": _mnist, "cifar10": _cifar10, "folder": _folder}
