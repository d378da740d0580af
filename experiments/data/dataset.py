"""A dataset of labelled images in three splits, held in memory as bytes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plywise.env.recovery.augmentation import Augmentation, normalised
from plywise.experiments.data.preprocessing import NOTHING_GIVEN, Preprocessing

CUT = "cut from the training split"


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images and how to normalise them.

    Attributes:
        images: `(n, c, h, w)` uint8.
        labels: `(n,)` int64, index into the dataset's classes.
        mean: of each channel, applied after scaling to [0, 1].
        std: of each channel, likewise.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8
        assert self.images.dim() == 4
        assert self.labels.dtype == torch.int64
        assert self.labels.shape == self.images.shape[:1]
        assert len(self.mean) == len(self.std) == self.images.shape[1]

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns normalised images from `start` up to `stop` (None: the end), `(n, c, h, w)` float32."""
        return normalised(self, self.images[start:stop])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields normalised images `(b, c, h, w)` and labels `(b,)` in order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.inputs(start, start + size), self.labels[start : start + size]

    def select(self, indices: Tensor) -> "Split":
        """Returns the split of the images at `indices` `(m,)` int64, in that order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, cut in three.

    Attributes:
        name: the kind of dataset, as in its spec: `digits`, `mnist`, `cifar10`, `folder`.
        classes: names, in the order of the labels.
        train: for calibration, training and fine-tuning.
        validation: for scoring plans; shares no image with `train`.
        test: touched once, for the report.
        validation_source: where the validation images come from, in words.
        preprocessing: what was done to the images and is done to the inputs, and who chose it.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    validation_source: str = CUT
    preprocessing: Preprocessing = NOTHING_GIVEN

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def augmentation(self) -> Augmentation:
        """How training images vary; only what is known to be photos is mirrored, for digits and letters change."""
        return Augmentation(mirror=self.name == "cifar10")

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel that inputs are normalised with."""
        return self.train.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel that inputs are normalised with."""
        return self.train.std
