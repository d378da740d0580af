"""From names on the command line to a network under study."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from plywise.compressors.errors import ConfigurationError
from plywise.compressors.plain_values import as_whole
from plywise.env.bank.repair import FULL, Repair
from plywise.env.costs.latency import Latencies
from plywise.env.execution.progress import tracked, untracked
from plywise.env.network.preparation import prepare
from plywise.env.subject import Subject
from plywise.env.task.binding import BoundTask, bind
from plywise.env.task.samples import Labelled, Samples, labelled
from plywise.env.task.task import Task
from plywise.experiments.data.dataset import Dataset, Split
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.data.preprocessing import NOTHING_GIVEN, Preprocessing
from plywise.experiments.networks.model_loading import check_runs, load_model, load_task
from plywise.experiments.networks.zoo import zoo_entry

CALIBRATION_IMAGES = 512
VALIDATION_IMAGES = 2000
MOST_SEED = 2**32 - 1
"""The largest that every generator takes."""

NOT_KNOWN = "whether the network was trained on them is not known; if it was, drops look larger than they are"


@dataclass(frozen=True)
class Study:
    """A network under study.

    Attributes:
        subject: the network.
        test: samples that only the report may look at.
        task: its data and functions, where it has a task of its own; None for a classifier of a dataset's images.
    """

    subject: Subject
    test: Samples
    task: BoundTask | None = None

    @property
    def images(self) -> Labelled:
        """The test samples of a classifier of a dataset's images."""
        assert isinstance(self.test, Labelled)
        return self.test


def study(
    model: str,
    data: Dataset | Task,
    weights: Path | None = None,
    seed: int = 0,
    progress: bool = True,
    latency: Latencies | None = None,
) -> Study:
    """Loads a network and finds out what there is to know about it; what is known already is read from the cache.

    Args:
        model: as for `load_model`.
        data: calibration items come from its training split, plans are scored on its validation split.
        weights: a state dict.
        seed: of every random choice.
        progress: whether to show bars.
        latency: of the device; this machine's where None.

    Raises:
        PlywiseError: if the network or the data are not usable.
    """
    network = load_model(model, weights, data if isinstance(data, Dataset) else None)
    return study_network(network, model, data, seed, progress, latency)


def study_network(
    network: nn.Module,
    name: str,
    data: Dataset | Task,
    seed: int = 0,
    progress: bool = True,
    latency: Latencies | None = None,
    repair: Repair = FULL,
    ignored: Sequence[str | type] = (),
) -> Study:
    """Does what `study` does with a network that is loaded; `name` is what it was loaded as."""
    task = bind(data, prepare(network).model) if isinstance(data, Task) else None
    if task is None:
        assert isinstance(data, Dataset)
        calibration: Samples = samples(data.train, CALIBRATION_IMAGES)
        validation: Samples = samples(data.validation, VALIDATION_IMAGES)
        test: Samples = samples(data.test)
    else:
        calibration, validation, test = task.calibration, task.validation, task.test
    subject = Subject(
        network,
        calibration,
        validation,
        name=name.removeprefix("zoo:"),
        latency=latency,
        track=tracked if progress else untracked,
        seed=seed,
        repair=repair,
        ignored=ignored,
    )
    return Study(subject, test, task)


def load_both(
    model: str | nn.Module,
    data: str | None,
    weights: Path | None,
    preprocessing: Preprocessing = NOTHING_GIVEN,
    task: Task | str | None = None,
) -> tuple[nn.Module, Dataset | Task]:
    """Loads a network and the data that it must run on: first what is quick, so that mistakes are told soon.

    Args:
        model: as for `load_model`, or the network itself.
        data: a dataset; None where there is a task.
        weights: a state dict.
        preprocessing: of the dataset's images.
        task: of the network, or `path.py:make_task`; that of the zoo where it has one and None is given.

    Raises:
        PlywiseError: if the network or the data are not usable.
    """
    if task is None and data is None:
        task = own_task(model) if isinstance(model, str) else None
    if task is not None:
        check_no_preprocessing(preprocessing)
        found = load_task(task) if isinstance(task, str) else task
        return load_model(model, weights) if isinstance(model, str) else model, found
    if data is None:
        raise ConfigurationError(
            f"which data is {model if isinstance(model, str) else 'the network'} for? Give a dataset, such as "
            "'digits' or 'folder:PATH', or a task with data of your own ('plywise init' writes a file to start from)"
        )
    if not isinstance(model, str):
        dataset = load_dataset(data, preprocessing=preprocessing)
        check_runs(prepare(model).model, dataset)
        return model, dataset
    if weights is None and trains_here(model):
        dataset = load_dataset(data, preprocessing=preprocessing)
        return load_model(model, None, dataset), dataset
    network = load_model(model, weights)
    dataset = load_dataset(data, preprocessing=preprocessing)
    check_runs(prepare(network).model, dataset)
    return network, dataset


def check_no_preprocessing(given: Preprocessing) -> None:
    """Raises ConfigurationError where a task's own data come with what is done to a dataset's images."""
    if given != NOTHING_GIVEN:
        raise ConfigurationError(
            f"{', '.join(given.options())} say what is done to the images of a dataset, and a task prepares its own "
            "data: do it there and leave them out, or give a dataset with --data"
        )


def own_task(model: str) -> Task | None:
    """Returns the task of a network of the zoo that has one of its own; raises ConfigurationError on unknown names."""
    kind, colon, name = model.rpartition(":")
    make_task = zoo_entry(name).make_task if not colon or kind == "zoo" else None
    return None if make_task is None else make_task()


def trains_here(model: str) -> bool:
    """Returns whether a network is of the zoo and trained on the spot; raises ConfigurationError on unknown names."""
    kind, colon, name = model.rpartition(":")
    return (not colon or kind == "zoo") and zoo_entry(name).training is not None


def trained_here(model: str | nn.Module, weights: Path | None) -> bool:
    """Returns whether a network was trained on the spot, on the data as they are prepared."""
    return weights is None and isinstance(model, str) and trains_here(model)


def validation_kind(model: str | nn.Module, data: Dataset | BoundTask, weights: Path | None) -> str:
    """Returns in words what plans are scored on."""
    seen = "the network was not trained on them" if trained_here(model, weights) else NOT_KNOWN
    return f"{data.validation_source if isinstance(data, Dataset) else data.validation_kind}; {seen}"


def checked_seed(seed: int) -> int:
    """Returns a seed as a plain number; raises ConfigurationError unless every generator takes it."""
    number = as_whole(seed)
    if number is None or not 0 <= number <= MOST_SEED:
        raise ConfigurationError(f"seed={seed!r} must lie between 0 and {MOST_SEED}, a whole number")
    return number


def samples(split: Split, most: int | None = None) -> Labelled:
    """Returns images of a split, normalised: all, or a random choice that is always the same.

    A choice, for many datasets come sorted by class.
    """
    if most is not None and most < len(split):
        split = random_part(split, most)
    return labelled(split.inputs(), split.labels)


def random_part(split: Split, most: int) -> Split:
    """Returns up to `most` images of a split in random order, always the same."""
    return split.select(torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:most])
