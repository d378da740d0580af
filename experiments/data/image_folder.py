"""Image folders `train/<class>/*`, `test/<class>/*` (and `val/<class>/*`), plain or zipped."""

import io
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from plywise.compressors.errors import DataError
from plywise.env.execution.progress import tracked
from plywise.env.storage.cache import cache_folder
from plywise.experiments.data.cached_tensors import read_tensors, write_tensors
from plywise.experiments.data.image_source import ImageSource, open_source
from plywise.experiments.data.splits import LabelledImages

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
SPLITS = ("train", "val", "test")
LARGEST_SIDE = 224
LOOKED_AT = 200
"""Training images, at most and evenly spread, that decide whether there is colour."""
FORMAT = "2"
"""Part of the key of cached images; to be raised whenever the decoding changes."""

Listing = Mapping[str, Mapping[str, Sequence[str]]]
"""File names by split and class, all sorted."""


@dataclass(frozen=True)
class ImageForm:
    """What every image is brought to: Pillow's mode (`L` or `RGB`), width and height in pixels."""

    mode: str
    width: int
    height: int

    @classmethod
    def of(cls, content: bytes, name: str) -> "ImageForm":
        """Returns the form of an encoded image, scaled down where a side is above 224 pixels."""
        image = _opened(content, name)
        scale = min(1.0, LARGEST_SIDE / max(image.size))
        width, height = (max(1, round(side * scale)) for side in image.size)
        return cls("L" if image.mode in ("1", "L") else "RGB", width, height)

    @classmethod
    def of_all(cls, source: ImageSource, names: Sequence[str]) -> "ImageForm":
        """Returns the size of the first image, in colour where any of those looked at is."""
        forms = (cls.of(source.read(name), name) for name in names[:: math.ceil(len(names) / LOOKED_AT)])
        first = next(forms)
        return replace(first, mode="RGB") if any(form.mode == "RGB" for form in forms) else first


def read_image_folder(path: Path) -> tuple[tuple[str, ...], dict[str, LabelledImages]]:
    """Reads all images, from the cache where nothing has changed since they were decoded.

    All images get the size of the first training image, at most 224 pixels a side, and three channels where any of 200
    training images has colour, else one.

    Returns:
        The names of the classes, sorted, and the images of each split that is there (`train` always is, and at
        least one of `val` and `test`).

    Raises:
        DataError: there are no images, the splits' classes differ, or an image is damaged.
    """
    source = open_source(path)
    listing = list_images(source)
    cached = cache_folder("images") / f"{source.fingerprint()}-{FORMAT}.safetensors"
    tensors = read_tensors(cached)
    if tensors is None:
        tensors = _decode_all(source, listing)
        write_tensors(cached, tensors)
    parts = {split: LabelledImages(tensors[f"{split}.images"], tensors[f"{split}.labels"]) for split in listing}
    return tuple(listing["train"]), parts


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


def _decode_all(source: ImageSource, listing: Listing) -> dict[str, Tensor]:
    form = ImageForm.of_all(source, [name for names in listing["train"].values() for name in names])
    rows = [
        (split, label, name)
        for split, classes in listing.items()
        for label, names in enumerate(classes.values())
        for name in names
    ]
    images = torch.empty((len(rows), len(form.mode), form.height, form.width), dtype=torch.uint8)
    for index, (_, _, name) in enumerate(tracked(rows, f"Decoding the images of {source.path.name}")):
        images[index] = decode(source.read(name), name, form)
    tensors, start = {}, 0
    for split in listing:
        labels = torch.tensor([label for part, label, _ in rows if part == split])
        tensors[f"{split}.images"] = images[start : start + len(labels)]
        tensors[f"{split}.labels"] = labels
        start += len(labels)
    return tensors


def decode(content: bytes, name: str, form: ImageForm) -> Tensor:
    """Decodes an image and brings it to `form`.

    Returns:
        `(c, h, w)` uint8.

    Raises:
        DataError: the image is empty, truncated or not an image.
    """
    try:
        image = _opened(content, name).convert(form.mode)
    except (OSError, ValueError, SyntaxError) as error:
        raise _damaged(name, error) from error
    if image.size != (form.width, form.height):
        image = image.resize((form.width, form.height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if form.mode == "L" else pixels.permute(2, 0, 1)


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
    return DataError(f"the image {name} cannot be decoded ({error}); replace it or remove it")
