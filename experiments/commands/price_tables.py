"""Price tables of several networks of the zoo on several devices, by one process for each core."""

import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from plywise.env.costs.devices import HERE, open_device
from plywise.env.costs.latency import RoughLatencyWarning
from plywise.env.execution.executor import Executor, NoSetup
from plywise.env.execution.in_process import InProcess
from plywise.env.execution.process_pool import ProcessPool
from plywise.env.execution.progress import tracked
from plywise.env.prices.prices import PriceTable
from plywise.env.storage.cache import cache_folder
from plywise.experiments.commands.study import study
from plywise.experiments.data.dataset import Dataset
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.data.normalisation import Normalisation
from plywise.experiments.networks.zoo import trainable, untrained


@dataclass(frozen=True)
class Pricing:
    """The task of training and pricing one network; the cache keeps all that it finds.

    Attributes:
        network: of the zoo.
        data: spec of what it runs on.
        seed: of every random choice.
        device: as for `open_device`.
        normalisation: as for `load_dataset`.
    """

    network: str
    data: str
    seed: int = 0
    device: str = HERE
    normalisation: Normalisation | None = None
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
        dataset, latency = load_dataset(self.data, normalisation=self.normalisation), open_device(self.device)
        return study(self.network, dataset, seed=self.seed, progress=False, latency=latency).subject.price()


def price_networks(
    networks: Sequence[str],
    data: str,
    seed: int = 0,
    devices: Sequence[str] = (HERE,),
    normalisation: Normalisation | None = None,
) -> list[PriceTable]:
    """Returns the price table of each network on each device, made by one process for each core.

    An interrupted run goes on where it stopped: tables and probes are kept as they come.
    """
    # A mistake should be told once, and before anything starts.
    dataset = load_dataset(data, normalisation=normalisation)
    for name in networks:
        trainable(name, dataset)
    for device in devices:
        open_device(device)
    slowest_first = sorted(networks, key=lambda name: _pass_seconds(name, dataset), reverse=True)  # no core idles
    tasks = [Pricing(name, data, seed, device, normalisation) for name in slowest_first for device in devices]
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
    return [found[name, device][0] for name in networks for device in devices]


def _executor(processes: int) -> Executor[None]:
    return InProcess(NoSetup()) if processes == 1 else ProcessPool(processes, NoSetup())


@torch.inference_mode()
def _pass_seconds(name: str, dataset: Dataset) -> float:
    network, images = untrained(name).eval(), torch.zeros(256, *dataset.input_shape)
    network(images)
    started = time.perf_counter()
    network(images)
    return time.perf_counter() - started
