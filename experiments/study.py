"""From names on the command line to a network under study."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plywise.env.latency import LatencyTable
from plywise.env.samples import Samples
from plywise.env.subject import Subject
from plywise.experiments.dataset import Dataset, Split
from plywise.experiments.model_loading import load_model
from plywise.experiments.progress import tracked

CALIBRATION_IMAGES = 512
VALIDATION_IMAGES = 2000


@dataclass(frozen=True)
class Study:
    """A network under study with the samples that only the report may look at."""

    subject: Subject
    test: Samples


def study(model: str, dataset: Dataset, weights: Path | None = None, seed: int = 0, progress: bool = True) -> Study:
    """Loads a network and finds out what there is to know about it; what is known already is read from the cache.

    Args:
        model: as for `load_model`.
        dataset: calibration images come from its training split, plans are scored on its validation split.
        weights: a state dict.
        seed: of every random choice.
        progress: whether to show bars.

    Raises:
        PlywiseError: if the network or the data are not usable.
    """
    network = load_model(model, weights, dataset)
    subject = Subject(
        network,
        samples(dataset.train, CALIBRATION_IMAGES),
        samples(dataset.validation, VALIDATION_IMAGES),
        name=model.removeprefix("zoo:"),
        latency=LatencyTable(),
        track=tracked if progress else untracked,
        seed=seed,
    )
    return Study(subject, samples(dataset.test))


def untracked(items: Iterable[Any], description: str, count: int) -> Iterable[Any]:
    """Returns `items`: no bar, for worker processes."""
    return items


def samples(split: Split, most: int | None = None) -> Samples:
    """Returns the first images of a split, normalised; splits are shuffled once and for all."""
    return Samples(split.inputs(0, most), split.labels[:most])
