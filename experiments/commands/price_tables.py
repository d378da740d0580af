"""Price tables of several networks on several devices, by one process for each core."""

import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from plywise.compressors.errors import ConfigurationError
from plywise.env.costs.devices import HERE, open_device
from plywise.env.costs.latency import RoughLatencyWarning
from plywise.env.execution.executor import Executor, NoSetup
from plywise.env.execution.in_process import InProcess
from plywise.env.execution.process_pool import ProcessPool
from plywise.env.execution.progress import tracked
from plywise.env.prices.prices import PriceTable
from plywise.env.storage.cache import cache_folder
from plywise.env.task.forward import rule_for
from plywise.env.task.task import Task
from plywise.experiments.commands.compression_settings import SourceSettings
from plywise.experiments.commands.study import load_both, own_task, study_network
from plywise.experiments.data.dataset import Dataset
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.data.preprocessing import NOTHING_GIVEN, Preprocessing
from plywise.experiments.networks.zoo import trainable, untrained, zoo_entry

USUAL_DATASET = "digits"
"""Of classifiers of images, where none is given."""


@dataclass(frozen=True)
class Pricing:
    """The task of loading, perhaps training, and pricing one network; the cache keeps all that it finds.

    Attributes:
        network: of the zoo, or a user's, as for `load_model`.
        data: spec of the dataset that it runs on; None where it has a task of its own.
        seed: of every random choice.
        device: as for `open_device`.
        preprocessing: as for `load_dataset`.
        task: of a user's network, `path.py:make_task`.
        weights: of a user's network, a state dict.
    """

    network: str
    data: str | None
    seed: int = 0
    device: str = HERE
    preprocessing: Preprocessing = NOTHING_GIVEN
    task: str | None = None
    weights: Path | None = None
    key: None = None

    def run(self, _: None = None) -> tuple[PriceTable, bool]:
        """Returns the price table, and whether its latencies vary, which each of many tasks would say many times."""
        with warnings.catch_warnings(record=True) as told:
            table = self.price()
        for each in told:
            if each.category is not RoughLatencyWarning:
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        return table, any(each.category is RoughLatencyWarning for each in told)

    def price(self) -> PriceTable:
        """Returns the price table."""
        network, data = load_both(self.network, self.data, self.weights, self.preprocessing, self.task)
        latency = open_device(self.device)
        return study_network(network, self.network, data, self.seed, progress=False, latency=latency).subject.price()


def own_pricing(source: SourceSettings, seed: int = 0, device: str = HERE) -> Pricing:
    """Returns the task of pricing a user's network, which must be given by name.

    Raises:
        ConfigurationError: where network or task are objects, which other processes cannot be told.
    """
    if not isinstance(source.model, str) or not isinstance(source.task, str | None):
        raise ConfigurationError("an agent is trained on networks and tasks by name: 'path.py:function'")
    return Pricing(source.model, source.data, seed, device, source.preprocessing, source.task, source.weights)


def dataset_for(networks: Sequence[str], data: str | None, preprocessing: Preprocessing = NOTHING_GIVEN) -> str | None:
    """Returns the spec of the dataset that those of the networks run on that are classifiers of images.

    Args:
        networks: names of the zoo.
        data: the spec that was given; the digits where None.
        preprocessing: that was given.

    Returns:
        None where each network has a task of its own.

    Raises:
        ConfigurationError: where something was given and no network takes it.
    """
    if any(zoo_entry(name).make_task is None for name in networks):
        return data or USUAL_DATASET
    if data is not None or preprocessing != NOTHING_GIVEN:
        raise ConfigurationError(
            f"{', '.join(networks)} have data of their own, and no network is a classifier of images, which a dataset "
            "is for: leave out --data, --mean and the like, or name a classifier among the networks"
        )
    return None


def price_networks(
    networks: Sequence[str],
    data: str | None = None,
    seed: int = 0,
    devices: Sequence[str] = (HERE,),
    preprocessing: Preprocessing = NOTHING_GIVEN,
    own: SourceSettings | None = None,
) -> list[PriceTable]:
    """Returns the price table of each network on each device, made by one process for each core; a user's is the last.

    An interrupted run goes on where it stopped: tables and probes are kept as they come.

    Args:
        networks: names of the zoo.
        data: dataset that classifiers of images run on, as for `dataset_for`; the others have data of their own.
        seed: of every random choice.
        devices: as for `open_device`.
        preprocessing: of the dataset's images.
        own: a network of the user's, by name.
    """
    # A mistake should be told once, and before anything starts.
    data = dataset_for(networks, data, preprocessing) if networks else None
    dataset = None if data is None else load_dataset(data, preprocessing=preprocessing)
    seconds = {}
    for name in networks:
        runs_on = own_task(name) or dataset
        assert runs_on is not None
        trainable(name, runs_on)
        seconds[name] = _pass_seconds(name, runs_on)
    for device in devices:
        open_device(device)
    if own is not None:
        load_both(own.model, own.data, own.weights, own.preprocessing, own.task)
    tasks: list[Pricing] = [] if own is None else [own_pricing(own, seed, device) for device in devices]
    tasks += [
        Pricing(name, data if zoo_entry(name).make_task is None else None, seed, device, preprocessing)
        for name in sorted(networks, key=seconds.__getitem__, reverse=True)  # the slowest first, so that no core idles
        for device in devices
    ]
    with _executor(min(os.cpu_count() or 1, len(tasks))) as executor:
        results = tracked(executor.results(tasks), "training and pricing networks", len(tasks))
        found = {(task.network, task.device): result for task, result in zip(tasks, results, strict=True)}
    rough = sum(varied for _, varied in found.values())
    if rough:
        warnings.warn(
            f"latencies of {rough} of {len(found)} networks vary much from one moment to the next; give the machine "
            f"less to do and delete {cache_folder() / 'latency.sqlite'} for better ones",
            RoughLatencyWarning,
            stacklevel=2,
        )
    names = (*networks, *([] if own is None else [own.name]))
    return [found[name, device][0] for name in names for device in devices]


def _executor(processes: int) -> Executor[None]:
    return InProcess(NoSetup()) if processes == 1 else ProcessPool(processes, NoSetup())


@torch.inference_mode()
def _pass_seconds(name: str, data: Dataset | Task) -> float:
    """Returns how long a pass over validation items takes: those of a task, and 256 images of any dataset."""
    network = untrained(name).eval()
    if isinstance(data, Task):
        batches = [*(data.validation or data.calibration)]
    else:
        batches = [torch.zeros(256, *data.input_shape)]
    forward = rule_for(network, batches[0])
    forward(network, batches[0])
    started = time.perf_counter()
    for batch in batches:
        forward(network, batch)
    return time.perf_counter() - started
