"""How images are cut into splits: stratified by class, the same on every machine."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plywise.compressors.errors import DataError
from plywise.env.task.samples import random_order
from plywise.experiments.data.dataset import CUT, Dataset, Split
from plywise.experiments.data.preprocessing import MEASURED, NOTHING_GIVEN, Preprocessing

VALIDATION_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images `(n, c, h, w)` uint8 and labels `(n,)` int64, not yet cut or normalised."""

    images: Tensor
    labels: Tensor

    def cut(self, count: int, seed: int) -> tuple["LabelledImages", "LabelledImages"]:
        """Returns (the rest, `count` images), stratified by class, both in the original order."""
        chosen = torch.zeros(len(self.labels), dtype=torch.bool)
        chosen[stratified(self.labels, count, seed)] = True
        rest = ~chosen
        return (
            LabelledImages(self.images[rest], self.labels[rest]),
            LabelledImages(self.images[chosen], self.labels[chosen]),
        )


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Draws `count` indices such that each class has its share, rounded by the largest remainders.

    Args:
        labels: `(n,)` int64.
        count: how many to draw.
        seed: of the draw; the same seed gives the same indices.

    Returns:
        `(count,)` int64, by class.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.bincount(labels).tolist()
    quotas = [divmod(count * size, len(labels)) for size in sizes]
    missing = count - sum(whole for whole, _ in quotas)
    rounded_up = sorted(range(len(sizes)), key=lambda label: (-quotas[label][1], label))[:missing]
    drawn = []
    for label, (whole, _) in enumerate(quotas):
        order = random_order(sizes[label], generator)
        members = torch.nonzero(labels == label).flatten()
        drawn.append(members[order[: whole + (label in rounded_up)]])
    return torch.cat(drawn)


def assemble(
    name: str,
    classes: tuple[str, ...],
    train: LabelledImages,
    test: LabelledImages,
    validation: LabelledImages | None = None,
    *,
    seed: int = 0,
    validation_count: int | None = None,
    preprocessing: Preprocessing = NOTHING_GIVEN,
) -> Dataset:
    """Cuts the validation split from the training images where none is given, and normalises.

    Args:
        name: of the dataset.
        classes: names, in the order of the labels.
        train: training images.
        test: test images.
        validation: validation images that are already apart from the training images.
        seed: of the cut.
        validation_count: how many images to cut; one tenth where None.
        preprocessing: what was done to the images and how they are normalised; with the moments of the training split
            where it has no mean.

    Raises:
        DataError: too few training images to cut from.
    """
    source = CUT if validation is None else "the dataset's own validation split"
    if validation is None:
        count = validation_count or round(len(train.labels) * VALIDATION_SHARE)
        smallest = int(torch.bincount(train.labels, minlength=len(classes)).min())
        if count == 0 or smallest < 2:
            raise DataError(
                f"dataset {name!r} has {len(train.labels)} training images, {smallest} in its smallest class; "
                "to cut validation images it needs at least 6, and 2 in each class"
            )
        train, validation = train.cut(count, seed)
    if preprocessing.mean is None or preprocessing.std is None:
        mean, std = channel_moments(train.images)
        preprocessing = replace(preprocessing, mean=mean, std=std, source=MEASURED)
    else:
        mean, std = preprocessing.mean, preprocessing.std
    fit, held_out, unseen = (Split(part.images, part.labels, mean, std) for part in (train, validation, test))
    return Dataset(name, classes, fit, held_out, unseen, source, preprocessing)


def channel_moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each channel, of `(n, c, h, w)` uint8 images scaled to [0, 1].

    They come from exact counts of the 256 levels, so they do not depend on the order of a sum. The standard
    deviation of a channel that never changes is given as 1.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).to(torch.float64)
        mean = float((counts * levels).sum() / counts.sum())
        variance = float((counts * (levels - mean) ** 2).sum() / counts.sum())
        means.append(mean)
        stds.append(variance**0.5 or 1.0)
    return tuple(means), tuple(stds)
