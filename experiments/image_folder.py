"""Image folders `train/<class>/*`, `test/<class>/*` (and `val/<class>/*`), plain or zipped."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from plywise.compressors.errors import DataError
from plywise.env.cache import cache_folder
from plywise.experiments.image_source import ImageSource, open_source
from plywise.experiments.progress import tracked
from plywise.experiments.splits import LabelledImages
from plywise.experiments.tensor_file import read_tensors, write_tensors

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
SPLITS = ("train", "val", "test")
LARGEST_SIDE = 224
FORMAT = "1"
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
        return cls("L" if image.mode in ("1", "L", "I", "I;16") else "RGB", width, height)


def read_image_folder(path: Path) -> tuple[tuple[str, ...], dict[str, LabelledImages]]:
    """Reads all images, from the cache where nothing has changed since they were decoded.

    All images get the mode and the size of the first training image, at most 224 pixels a side.

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
    """Finds the images of each split and class.

    Raises:
        DataError: there are none, a split is missing, or the splits' classes differ.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name in source.names():
        parts = PurePosixPath(name).parts
        hidden = parts[0] == "__MACOSX" or parts[-1].startswith(".")
        if len(parts) >= 3 and parts[-3] in SPLITS and parts[-1].lower().endswith(SUFFIXES) and not hidden:
            found.setdefault(parts[-3], {}).setdefault(parts[-2], []).append(name)
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
    return {split: dict(sorted(found[split].items())) for split in SPLITS if split in found}


def _decode_all(source: ImageSource, listing: Listing) -> dict[str, Tensor]:
    first = next(iter(listing["train"].values()))[0]
    form = ImageForm.of(source.read(first), first)
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
    try:
        return Image.open(io.BytesIO(content))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> DataError:
    return DataError(f"the image {name} cannot be decoded ({error}); replace it or remove it")
