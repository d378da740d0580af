"""From names on the command line to a network under study."""

from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import torch
from torch import nn

from plywise.compressors.errors import ConfigurationError
from plywise.env.bank.repair import FULL, Repair
from plywise.env.costs.latency import Latencies
from plywise.env.execution.progress import tracked, untracked
from plywise.env.subject import Subject
from plywise.env.task.samples import Samples, labelled
from plywise.experiments.data.dataset import Dataset, Split
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.data.normalisation import Normalisation
from plywise.experiments.networks.model_loading import check_runs, load_model
from plywise.experiments.networks.zoo import zoo_entry

CALIBRATION_IMAGES = 512
VALIDATION_IMAGES = 2000
MOST_SEED = 2**32 - 1
"""The largest that every generator takes."""


@dataclass(frozen=True)
class Study:
    """A network under study with the samples that only the report may look at."""

    subject: Subject
    test: Samples


def study(
    model: str,
    dataset: Dataset,
    weights: Path | None = None,
    seed: int = 0,
    progress: bool = True,
    latency: Latencies | None = None,
) -> Study:
    """Loads a network and finds out what there is to know about it; what is known already is read from the cache.

    Args:
        model: as for `load_model`.
        dataset: calibration images come from its training split, plans are scored on its validation split.
        weights: a state dict.
        seed: of every random choice.
        progress: whether to show bars.
        latency: of the device; this machine's where None.

    Raises:
        PlywiseError: if the network or the data are not usable.
    """
    return study_network(load_model(model, weights, dataset), model, dataset, seed, progress, latency)


def study_network(
    network: nn.Module,
    name: str,
    dataset: Dataset,
    seed: int = 0,
    progress: bool = True,
    latency: Latencies | None = None,
    repair: Repair = FULL,
) -> Study:
    """Does what `study` does with a network that is loaded; `name` is what it was loaded as."""
    subject = Subject(
        network,
        samples(dataset.train, CALIBRATION_IMAGES),
        samples(dataset.validation, VALIDATION_IMAGES),
        name=name.removeprefix("zoo:"),
        latency=latency,
        track=tracked if progress else untracked,
        seed=seed,
        repair=repair,
    )
    return Study(subject, samples(dataset.test))


def load_both(
    model: str, data: str, weights: Path | None, normalisation: Normalisation | None = None
) -> tuple[nn.Module, Dataset]:
    """Loads a network and the data that it must run on: first what is quick, so that mistakes are told soon.

    Raises:
        PlywiseError: if the network or the data are not usable.
    """
    if weights is None and trains_here(model):
        dataset = load_dataset(data, normalisation=normalisation)
        return load_model(model, None, dataset), dataset
    network = load_model(model, weights)
    dataset = load_dataset(data, normalisation=normalisation)
    check_runs(network, dataset)
    return network, dataset


def trains_here(model: str) -> bool:
    """Returns whether a network is of the zoo and trained on the spot; raises ConfigurationError on unknown names."""
    kind, colon, name = model.rpartition(":")
    return (not colon or kind == "zoo") and zoo_entry(name).training is not None


def validation_kind(model: str, dataset: Dataset, weights: Path | None) -> str:
    """Returns in words what plans are scored on."""
    seen = "the network was not trained on them"
    if weights is not None or not trains_here(model):
        seen = "whether the network was trained on them is not known; if it was, drops look larger than they are"
    return f"{dataset.validation_source}; {seen}"


def check_seed(seed: int) -> None:
    """Raises ConfigurationError unless every generator takes the seed."""
    if not isinstance(seed, Integral) or not 0 <= seed <= MOST_SEED:
        raise ConfigurationError(f"seed={seed!r} must lie between 0 and {MOST_SEED}, a whole number")


def samples(split: Split, most: int | None = None) -> Samples:
    """Returns images of a split, normalised: all, or a random choice that is always the same.

    A choice, for many datasets come sorted by class.
    """
    if most is not None and most < len(split):
        split = random_part(split, most)
    return labelled(split.inputs(), split.labels)


def random_part(split: Split, most: int) -> Split:
    """Returns up to `most` images of a split in random order, always the same."""
    return split.select(torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:most])
