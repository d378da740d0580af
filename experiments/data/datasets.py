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
from plywise.experiments.data.preprocessing import BGR, NOTHING_GIVEN, RGB, USUAL, Preprocessing
from plywise.experiments.data.resizing import resized_parts
from plywise.experiments.data.splits import LabelledImages, assemble

DIGITS_COUNT = 360
"""Test and validation images of the digits: a fifth of all images each."""
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation that networks for ImageNet are trained with, red first."""
CIFAR10_USUAL = {
    RGB: Preprocessing(*IMAGENET, source=USUAL),
    BGR: Preprocessing(IMAGENET[0][::-1], IMAGENET[1][::-1], source=USUAL),
}
"""Of ImageNet, which many use for CIFAR-10 too; others use the moments of CIFAR-10 itself. By order of channels."""
CIFAR10_VALIDATION_COUNT = 5000
DIGIT_NAMES = tuple(map(str, range(10)))


def load_dataset(spec: str, seed: int = 0, preprocessing: Preprocessing = NOTHING_GIVEN) -> Dataset:
    """Loads a dataset.

    Args:
        spec: `digits`; `mnist:PATH` with the folder of the four IDX files; `cifar10:PATH` with an image folder,
            plain or zipped, or the folder of the original batches; `folder:PATH` with an image folder, plain or
            zipped.
        seed: of the cut between training and validation images. The test images do not depend on it.
        preprocessing: of the images. Mean and std: the dataset's usual ones, or those of its training split, where
            None; the rest as for `Preprocessing.for_images`.

    Raises:
        ConfigurationError: the spec names no dataset, or the preprocessing is for other channels.
        DataError: the files are missing, damaged or do not fit together, or images differ in size and none is given.
    """
    name, colon, location = spec.partition(":")
    if name == "digits":
        if colon:
            raise DataError(f"{spec!r}: the digits are built in and take no path; write 'digits'")
        return _digits(seed, preprocessing)
    if name not in READERS:
        raise unknown_name("dataset", name, ["digits", *READERS])
    path = Path(location).expanduser()
    if not location or not path.exists():
        raise DataError(
            f"{spec!r}: {f'{path} does not exist' if location else 'a path is missing'}; "
            f"write '{name}:PATH' with the path of the data, or 'digits' for data that are built in"
        )
    return READERS[name](path, seed, preprocessing)


def _digits(seed: int, asked: Preprocessing) -> Dataset:
    digits = load_digits()
    levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # the images have levels 0 to 16
    images = torch.from_numpy(levels).unsqueeze(1)
    everything = LabelledImages(images, torch.from_numpy(digits.target).to(torch.int64))
    parts, done = resized_parts(everything.cut(DIGITS_COUNT, seed=0), asked)
    return assemble("digits", DIGIT_NAMES, *parts, seed=seed, validation_count=DIGITS_COUNT, preprocessing=done)


def _mnist(path: Path, seed: int, asked: Preprocessing) -> Dataset:
    parts, done = resized_parts(read_mnist(path), asked)
    return assemble("mnist", DIGIT_NAMES, *parts, seed=seed, preprocessing=done)


def _cifar10(path: Path, seed: int, asked: Preprocessing) -> Dataset:
    classes: tuple[str, ...] = CLASSES
    for folder in (path, path / "cifar-10-batches-py", path / "cifar-10-batches-bin"):
        if (folder / "data_batch_1").exists():
            train, test = read_python_batches(folder)
            break
        if (folder / "data_batch_1.bin").exists():
            train, test = read_binary_batches(folder)
            break
    else:
        classes, images, _ = read_image_folder(path)
        train, test = images["train"], images.get("test") or images["val"]
    shape = tuple(train.images.shape[1:])
    if shape != (3, 32, 32) or len(classes) != 10:
        raise DataError(
            f"{path} holds {len(classes)} classes of {shape} images, but CIFAR-10 has 10 of (3, 32, 32); "
            f"write 'folder:{path}' for other images"
        )
    parts, done = resized_parts((train, test), asked)
    return assemble(
        "cifar10",
        classes,
        *parts,
        seed=seed,
        validation_count=min(CIFAR10_VALIDATION_COUNT, len(train.labels) // 10),
        preprocessing=done.or_else(CIFAR10_USUAL.get(str(done.channels), NOTHING_GIVEN)),
    )


def _folder(path: Path, seed: int, asked: Preprocessing) -> Dataset:
    classes, parts, done = read_image_folder(path, asked)
    if "test" in parts:
        return assemble(
            "folder", classes, parts["train"], parts["test"], parts.get("val"), seed=seed, preprocessing=done
        )
    return assemble("folder", classes, parts["train"], parts["val"], seed=seed, preprocessing=done)


READERS: dict[str, Callable[[Path, int, Preprocessing], Dataset]] = {
    "mnist": _mnist,
    "cifar10": _cifar10,
    "folder": _folder,
}
