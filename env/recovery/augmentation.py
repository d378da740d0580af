"""Training images kept as bytes, and batches of them moved and mirrored at random."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

MOST_SHIFT = 1 / 8
"""Share of the width and of the height by which an image moves at most."""


class TrainingImages(Protocol):
    """Labelled images and how to normalise them."""

    @property
    def images(self) -> Tensor:
        """Pixels, `(n, c, h, w)` uint8."""

    @property
    def labels(self) -> Tensor:
        """Classes, `(n,)` int64."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel, applied after scaling to [0, 1]."""

    @property
    def std(self) -> tuple[float, ...]:
        """Of each channel, likewise."""


def normalised(images: TrainingImages, pixels: Tensor) -> Tensor:
    """Returns what the network sees of some `pixels` `(n, c, h, w)` uint8, as float32."""
    shape = (1, -1, 1, 1)
    mean, std = torch.tensor(images.mean).view(shape), torch.tensor(images.std).view(shape)
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


@dataclass(frozen=True)
class Augmentation:
    """How training images vary.

    Attributes:
        mirror: whether half of them are mirrored left to right: right for photos, wrong for digits.
    """

    mirror: bool

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Returns each image shifted by up to an eighth, and perhaps mirrored; black moves in.

        Args:
            pixels: `(n, c, h, w)` uint8.
            generator: of the shifts.
        """
        count, _, height, width = pixels.shape
        rows = self._places(count, height, generator)
        columns = self._places(count, width, generator)
        if self.mirror:
            mirrored = torch.rand(count, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        margin = (_most(width), _most(width), _most(height), _most(height))
        framed = torch.nn.functional.pad(pixels, margin)
        chosen = framed[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (n, h, w, c)
        return chosen.permute(0, 3, 1, 2)

    def _places(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """Returns for each image which places of the framed one it shows, `(n, size)`."""
        shift = torch.randint(2 * _most(size) + 1, (count, 1), generator=generator)
        return shift + torch.arange(size)


def _most(size: int) -> int:
    return int(size * MOST_SHIFT)
