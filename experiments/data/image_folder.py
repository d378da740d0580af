"""Image folders `train/<class>/*`, `test/<class>/*` (and `val/<class>/*`), plain or zipped."""

import io
import math
import os
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from plywise.compressors.errors import DataError
from plywise.env.execution.progress import tracked
from plywise.env.storage.cache import cache_folder
from plywise.experiments.data.cached_tensors import read_tensors, write_tensors
from plywise.experiments.data.image_source import ImageSource, open_source
from plywise.experiments.data.preprocessing import CHANNELS, GRAY, NOTHING_GIVEN, RGB, Preprocessing, Size, size_text
from plywise.experiments.data.resizing import resized
from plywise.experiments.data.splits import LabelledImages

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
SPLITS = ("train", "val", "test")
FORMAT = "3"
"""Part of the key of cached images; to be raised whenever the decoding changes."""

Listing = Mapping[str, Mapping[str, Sequence[str]]]
"""File names by split and class, all sorted."""


def read_image_folder(
    path: Path, asked: Preprocessing = NOTHING_GIVEN
) -> tuple[tuple[str, ...], dict[str, LabelledImages], Preprocessing]:
    """Reads all images, from the cache where nothing has changed since they were decoded.

    Where no channels are asked for there are three where any training image has colour, else one.

    Args:
        path: the folder, or a zip archive of it.
        asked: what is left open is filled in, as for `Preprocessing.for_images`.

    Returns:
        The names of the classes, sorted, the images of each split that is there (`train` always is, and at
        least one of `val` and `test`), and what was done to them.

    Raises:
        DataError: there are no images, the splits' classes differ, an image is damaged, or the images differ in size
            and none is given.
    """
    source = open_source(path)
    listing = list_images(source)
    geometry = f"{asked.size and size_text(asked.size)}-{asked.crop}-{asked.channels}"
    cached = cache_folder("images") / f"{source.fingerprint()}-{geometry}-{FORMAT}.safetensors"
    tensors = read_tensors(cached)
    if tensors is None:
        tensors = _decode_all(source, listing, asked)
        write_tensors(cached, tensors)
    parts = {split: LabelledImages(tensors[f"{split}.images"], tensors[f"{split}.labels"]) for split in listing}
    count, height, width = parts["train"].images.shape[1:]
    channels = asked.channels or (RGB if count == CHANNELS[RGB] else GRAY)
    done = replace(asked, size=(height, width), crop=float(tensors["crop"]), channels=channels).for_channels(count)
    return tuple(listing["train"]), parts, done


def list_images(source: ImageSource) -> Listing:
    """Finds the images of each split and class; warns of classes without any.

    Raises:
        DataError: there are none, a split is missing, the splits lie in several places, or their classes differ.
    """
    found: dict[str, dict[str, list[str]]] = {}
    places: dict[PurePosixPath, PurePosixPath] = {}
    for name in source.names():
        path = PurePosixPath(name)
        folder = path.parent.parent
        if folder.name in SPLITS and path.name.lower().endswith(SUFFIXES) and not _hidden(path):
            found.setdefault(folder.name, {}).setdefault(path.parent.name, []).append(name)
            places.setdefault(folder.parent, folder)
    if len(places) > 1:
        some = " and ".join(f"{folder}/" for folder in list(places.values())[:2])
        raise DataError(
            f"{source.path} holds several datasets, for example at {some}; name the folder of one, in which train/ "
            "and test/ or val/ lie"
        )
    if "train" not in found or len(found) < 2:
        there = ", ".join(f"{split}/" for split in found) or "no image"
        raise DataError(
            f"{source.path} needs images (*{', *'.join(SUFFIXES)}) at train/<class>/ and at test/<class>/ or "
            f"val/<class>/; found {there}"
        )
    for split, classes in found.items():
        different = sorted(set(classes) ^ set(found["train"]))
        if different:
            raise DataError(
                f"{source.path}: {split}/ and train/ must have images of the same classes; only one of them has "
                f"{', '.join(map(repr, different[:5]))}"
            )
    _tell_empty(source, next(iter(places)) / "train", found["train"])
    return {split: dict(sorted(found[split].items())) for split in SPLITS if split in found}


def _tell_empty(source: ImageSource, train: PurePosixPath, classes: Collection[str]) -> None:
    """Warns of folders in the training split that hold no images and so are no classes."""
    folders = (PurePosixPath(name) for name in source.folders())
    empty = [path for path in folders if path.parent == train and path.name not in classes and not _hidden(path)]
    if empty:
        named = ", ".join(f"{path}/" for path in empty[:5])
        warnings.warn(
            f"{source.path}: no images (*{', *'.join(SUFFIXES)}) directly in {named}, so these are no classes",
            stacklevel=2,
        )


def _hidden(path: PurePosixPath) -> bool:
    return path.parts[0] == "__MACOSX" or any(part.startswith(".") for part in path.parts)


def _decode_all(source: ImageSource, listing: Listing, asked: Preprocessing) -> dict[str, Tensor]:
    rows = [
        (split, label, name)
        for split, classes in listing.items()
        for label, names in enumerate(classes.values())
        for name in names
    ]
    to = _looked_at(source, rows, asked)
    assert to.size is not None
    shape = (len(rows), CHANNELS[str(to.channels)], *to.size)
    _check_memory(source, shape)
    images = torch.empty(shape, dtype=torch.uint8)
    for index, (_, _, name) in enumerate(tracked(rows, f"Decoding the images of {source.path.name}")):
        images[index] = decode(source.read(name), name, to)
    tensors, start = {"crop": torch.tensor(to.crop, dtype=torch.float64)}, 0
    for split in listing:
        labels = torch.tensor([label for part, label, _ in rows if part == split])
        tensors[f"{split}.images"] = images[start : start + len(labels)]
        tensors[f"{split}.labels"] = labels
        start += len(labels)
    return tensors


def _looked_at(source: ImageSource, rows: Sequence[tuple[str, int, str]], asked: Preprocessing) -> Preprocessing:
    """Returns what all images are brought to, from what their headers say."""
    sizes, colour = Counter[Size](), False
    for split, _, name in tracked(rows, f"Looking at the images of {source.path.name}"):
        image = _opened(source.read(name), name)
        sizes[image.height, image.width] += 1
        colour |= split == "train" and image.mode not in ("1", "L")
    try:
        return asked.for_images(sizes, colour)
    except DataError as error:
        raise DataError(f"{source.path}: {error}") from error


def _check_memory(source: ImageSource, shape: tuple[int, ...]) -> None:
    """Raises DataError where decoded images `(n, c, h, w)` would take more than half of the memory."""
    needed, there = math.prod(shape), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there / 2:
        raise DataError(
            f"{source.path}: {shape[0]} images of {shape[2]}x{shape[3]} take {needed / 2**30:.1f} GiB of the machine's "
            f"{there / 2**30:.1f}; give the size that the network reads, such as --size 224, or fewer images"
        )


def decode(content: bytes, name: str, to: Preprocessing) -> Tensor:
    """Decodes an image and brings it to what the network reads.

    Returns:
        `(c, h, w)` uint8.

    Raises:
        DataError: the image is empty, truncated or not an image.
    """
    try:
        return resized(_opened(content, name), to)
    except (OSError, ValueError, SyntaxError) as error:
        raise _damaged(name, error) from error


def _opened(content: bytes, name: str) -> Image.Image:
    """Returns an image of 8 bits a channel."""
    try:
        image = Image.open(io.BytesIO(content))
        if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> DataError:
    if isinstance(error, UnidentifiedImageError):  # whose own words are about the object that was read from
        return DataError(f"the image {name} cannot be decoded: it is no image file; replace it or remove it")
    return DataError(f"the image {name} cannot be decoded ({error}); replace it or remove it")
