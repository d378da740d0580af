"""A warning where a network does clearly better on images that are prepared as is usual elsewhere."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from plywise.experiments.commands.near_chance import near_chance
from plywise.experiments.commands.study import random_part
from plywise.experiments.data.dataset import Dataset, Split
from plywise.experiments.data.datasets import IMAGENET
from plywise.experiments.data.preprocessing import BGR, GIVEN, RGB, Preprocessing

IMAGES = 256
"""Of the validation split, that each preprocessing is tried on, at most."""
BATCH = 64
"""Images after which one that does no better is given up."""
SURE = 3.0
"""Standard deviations of a chance difference that a difference must exceed, for several are tried."""
LEAST_SHARE = 0.02
"""Of the images, that a difference must reach to be worth a warning."""

USUAL_NUMBERS = {
    "ImageNet's mean and std": IMAGENET,
    "pixels in [0, 1]": ((0.0,), (1.0,)),
    "pixels in [-1, 1]": ((0.5,), (0.5,)),
    "pixels from 0 to 255": ((0.0,), (0.003922,)),
}
"""Mean and std that networks are usually trained with, red first."""


def preprocessing_warning(network: nn.Module, dataset: Dataset, name: str = "the original") -> str | None:
    """Returns what to say where another preprocessing is clearly better on some validation images, else None.

    Tried are the usual numbers for mean and std, and the other order of the channels. Nothing is said of a network that
    hardly does better than guessing with any of them.

    Args:
        network: in eval mode.
        dataset: with the preprocessing that the run will use.
        name: what to call the network.
    """
    split = random_part(dataset.validation, IMAGES)
    if len(split) < SURE**2:
        return None
    given, used = torch.cat([*_right(network, split)]), dataset.preprocessing
    words, better, best = "", used, given
    for named, tried in _usual(used, dataset.input_shape[0]):
        found = _right_or_given_up(network, _as_with(split, tried, used), given)
        if found is not None and found.sum() > best.sum():
            words, better, best = named, tried, found
    before, after = (100.0 * float(right.double().mean()) for right in (given, best))
    if not _clearly_better(best, given) or near_chance(after, dataset.num_classes):
        return None
    options = " ".join(f"--{option} {text}" for option, text in _changed(better, used).items())
    return (
        f"{name} reaches {before:.1f} % of {len(split)} validation images as they are prepared now "
        f"({used}), but {after:.1f} % with {words}. If the network was trained so, give {options}: "
        "every figure of this run would be another one"
    )


def _usual(given: Preprocessing, channels: int) -> Iterator[tuple[str, Preprocessing]]:
    """Yields what else is usual for images of so many channels, in words and as a value."""
    numbers = [("", given)]
    for words, (mean, std) in USUAL_NUMBERS.items():
        if len(mean) in (1, channels):
            order = -1 if given.channels == BGR else 1
            tried = replace(given, mean=mean[::order], std=std[::order], source=GIVEN).for_channels(channels)
            if (tried.mean, tried.std) != (given.mean, given.std):
                numbers.append((words, tried))
    yield from numbers[1:]
    if given.channels in (RGB, BGR):
        other = BGR if given.channels == RGB else RGB
        for words, tried in numbers:
            assert tried.mean is not None
            assert tried.std is not None
            swapped = replace(tried, mean=tried.mean[::-1], std=tried.std[::-1], channels=other, source=GIVEN)
            yield " and ".join(filter(None, (words, f"channels in the order {other}"))), swapped


def _changed(better: Preprocessing, given: Preprocessing) -> dict[str, str]:
    """Returns the options that are not as they were; mean and std together."""
    before, after = given.options(), better.options()
    numbers = ("mean", "std") if (better.mean, better.std) != (given.mean, given.std) else ()
    return {name: text for name, text in after.items() if name in numbers or text != before.get(name)}


def _as_with(split: Split, tried: Preprocessing, given: Preprocessing) -> Split:
    """Returns a split that was read with `given` as it would be with `tried`, of the same size."""
    assert tried.mean is not None
    assert tried.std is not None
    images = split.images if tried.channels == given.channels else split.images.flip(1)
    return replace(split, images=images, mean=tried.mean, std=tried.std)


def _right_or_given_up(network: nn.Module, split: Split, standard: Tensor) -> Tensor | None:
    """Returns which images are classified rightly `(n,)`; None once that are no more than with a standard `(n,)`."""
    parts: list[Tensor] = []
    try:
        for right in _right(network, split):
            parts.append(right)
            found = torch.cat(parts)
            if found.sum() <= standard[: len(found)].sum():
                return None
    except Exception:  # a user's network may refuse what it does not expect, and then it was not trained on it
        return None
    return torch.cat(parts)


def _right(network: nn.Module, split: Split) -> Iterator[Tensor]:
    """Yields for each batch which images are classified rightly, `(b,)` bool."""
    for inputs, labels in split.batches(BATCH):
        with torch.inference_mode():
            yield network(inputs).argmax(1) == labels


def _clearly_better(found: Tensor, standard: Tensor) -> bool:
    """Returns whether more images are right than chance explains (McNemar's test of paired samples)."""
    gained, lost = int((found & ~standard).sum()), int((standard & ~found).sum())
    return gained - lost > max(SURE * math.sqrt(gained + lost), LEAST_SHARE * len(found))
