"""Batches to train on, which follow from the number of a step alone, so that a run that goes on sees the same ones."""

import math
from collections.abc import Iterator
from typing import Protocol

import torch

from plywise.env.recovery.augmentation import Augmentation, TrainingImages, normalised
from plywise.env.task.batch import Batch, mapped
from plywise.env.task.samples import Samples


class TrainingData(Protocol):
    """Where batches come from."""

    def steps(self, size: int) -> int:
        """Returns how many batches of `size` items an epoch has."""

    def batch(self, step: int, size: int, seed: int) -> Batch:
        """Returns the batch of a step, counted over all epochs."""


class AugmentedImages:
    """Images of a dataset, moved and mirrored at random, with their classes."""

    def __init__(self, images: TrainingImages, augmentation: Augmentation) -> None:
        """Takes training images and how they vary."""
        self._images, self._augmentation = images, augmentation

    def steps(self, size: int) -> int:
        """See `TrainingData`."""
        return math.ceil(len(self._images.labels) / size)

    def batch(self, step: int, size: int, seed: int) -> Batch:
        """See `TrainingData`."""
        chosen = _chosen(len(self._images.labels), step, size, seed)
        pixels = self._augmentation(self._images.images[chosen], _generator(seed, 1, step))
        return normalised(self._images, pixels), self._images.labels[chosen]


class TaskBatches:
    """Calibration data of a task: items in a random order where they lie in memory, else batches as they come."""

    def __init__(self, samples: Samples) -> None:
        """Takes all data that there are to train on."""
        self._samples = samples
        self._whole = samples.joined(len(samples)) if samples.even else None
        self._reading: Iterator[Batch] = iter(())
        self._next = 0

    def steps(self, size: int) -> int:
        """See `TrainingData`; a batch that comes as it is counts as one step."""
        return math.ceil(len(self._samples) / size) if self._whole is not None else sum(1 for _ in self._samples)

    def batch(self, step: int, size: int, seed: int) -> Batch:
        """See `TrainingData`."""
        if self._whole is not None:
            chosen = _chosen(len(self._samples), step, size, seed)
            return mapped(self._whole, lambda tensor: tensor[chosen])
        if step != self._next:
            self._reading = iter(())
            for _ in range(step % self.steps(size)):
                self._read()
        self._next = step + 1
        return self._read()

    def _read(self) -> Batch:
        found = next(self._reading, None)
        if found is None:
            self._reading = iter(self._samples)
            found = next(self._reading)
        return found


def _chosen(count: int, step: int, size: int, seed: int) -> torch.Tensor:
    """Returns the items of a step: each epoch has its own random order."""
    epoch, place = divmod(step, math.ceil(count / size))
    order = torch.randperm(count, generator=_generator(seed, 0, epoch))
    return order[place * size :][:size]


def _generator(seed: int, purpose: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 2 + purpose) * 2**24 + number)
