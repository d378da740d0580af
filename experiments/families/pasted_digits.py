"""Handwritten digits of several sizes, pasted into larger images with noise, and where each is."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from plywise.experiments.data.datasets import load_dataset

SIDE = 24
"""Of an image, pixels."""
SIZES = (8, 10, 12, 14)
"""Sides of the squares that digits are resized to."""
MOST = 3
"""Digits of an image."""
COUNTS = {"train": 4096, "validation": 384, "test": 384}
"""Images of each split."""
NOISE = 0.1
INK = 0.3
"""What a pixel of a digit has at least, of 1."""
TRIES = 20


@dataclass(frozen=True, eq=False)
class PastedDigits:
    """Images and what is in them.

    Attributes:
        images: `(n, 1, 24, 24)` float32, about zero.
        classes: of each pixel, `(n, 24, 24)` int64: 0 is the background, d + 1 the digit d.
        boxes: `(n, 3, 5)` float32: left, top, right and bottom edge in pixels, and the digit; -1 where there is none.
    """

    images: Tensor
    classes: Tensor
    boxes: Tensor


@cache
def pasted_digits(split: str) -> PastedDigits:
    """Returns the images of a split, made of the digits of that split only."""
    digits = load_dataset("digits")
    source = {"train": digits.train, "validation": digits.validation, "test": digits.test}[split]
    inks = source.images.float() / 255
    resized = [
        F.interpolate(inks, size=(size, size), mode="bilinear", align_corners=False).numpy()[:, 0] for size in SIZES
    ]
    generator, count = np.random.default_rng(list(COUNTS).index(split)), COUNTS[split]
    images = np.zeros((count, SIDE, SIDE), np.float32)
    classes = np.zeros((count, SIDE, SIDE), np.int64)
    boxes = np.full((count, MOST, 5), -1, np.float32)
    for image, shown, found in zip(images, classes, boxes, strict=True):
        taken = np.zeros((SIDE, SIDE), bool)
        for place in range(generator.integers(1, MOST + 1)):
            which = generator.integers(len(inks))
            digit, label = resized[generator.integers(len(SIZES))][which], int(source.labels[which])
            area = _free_area(taken, len(digit), generator)
            if area is None:
                break
            taken[area] = True
            image[area] = digit * generator.uniform(0.6, 1)
            shown[area][digit > INK] = label + 1
            found[place] = *_edges(shown[area] > 0, area), label
    images += generator.normal(0, NOISE, images.shape).astype(np.float32)
    return PastedDigits(torch.from_numpy(images)[:, None] - 0.2, torch.from_numpy(classes), torch.from_numpy(boxes))


def _free_area(taken: NDArray[np.bool_], size: int, generator: np.random.Generator) -> tuple[slice, slice] | None:
    for _ in range(TRIES):
        top, left = generator.integers(SIDE - size + 1, size=2)
        area = slice(top, top + size), slice(left, left + size)
        if not taken[area].any():
            return area
    return None


def _edges(ink: NDArray[np.bool_], area: tuple[slice, slice]) -> tuple[int, int, int, int]:
    """Returns the left, top, right and bottom edge of what is inked in an area, pixels of the whole image."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    top, left = area[0].start, area[1].start
    return left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1
