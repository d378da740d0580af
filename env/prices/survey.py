"""What each layer of a network comes to alone, worked out by as many processes as torch may use threads."""

import multiprocessing
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from plywise.compressors.errors import PlywiseError
from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank.activation_memory import shared_memory
from plywise.env.prices.pricing import Pricer, Sizes
from plywise.env.prices.sensitivity import ProbeSamples, Probing, Sensitivity
from plywise.env.storage.memory import ceiling_of_layers, limit_memory, share
from plywise.env.storage.result_store import ResultStore


@dataclass(frozen=True)
class Surveyed:
    """Of one layer: its name, how sensitive it is to its recipes, and their bytes."""

    layer: str
    sensitivity: Sensitivity
    sizes: Mapping[Recipe, Sizes]


class Survey(Dataset[Surveyed | PlywiseError]):
    """Compresses a layer by all of its recipes, and probes it, when it is asked for the layer's place."""

    def __init__(self, pricer: Pricer, probed: ProbeSamples, store: ResultStore, key: str) -> None:
        """Prepares; arguments as for `Probing`."""
        self.pricer = pricer
        self.layers = pricer.network.layers
        self._probing = Probing(pricer.bank, pricer.recipes, probed, store, key)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, place: int) -> Surveyed | PlywiseError:
        layer = self.layers[place]
        try:
            return Surveyed(layer.name, self._probing.sensitivity(layer), self.pricer.sizes_of(layer))
        except PlywiseError as error:  # raised where it is told of as ours
            return error


def surveyed(survey: Survey) -> Iterator[Surveyed]:
    """Yields what is found of each layer, in order; the pricer of the survey then knows the sizes.

    Where processes can be forked, each takes a layer at a time and computes with one thread. What they compress is
    found in the bank's folder afterwards.

    Raises:
        PlywiseError: as the techniques do.
    """
    threads = torch.get_num_threads()
    alone = threads == 1 or sys.platform != "linux" or multiprocessing.current_process().daemon
    processes = 0 if alone else min(threads, len(survey))
    context = "fork" if processes else None
    for found in DataLoader(
        survey, None, num_workers=processes, worker_init_fn=_share_memory, multiprocessing_context=context
    ):
        if isinstance(found, PlywiseError):
            raise found
        survey.pricer.take_sizes(found.layer, found.sizes)
        yield found


def _share_memory(_: int) -> None:
    """Leaves to one of several processes its part of what may be kept."""
    worker = get_worker_info()
    assert worker is not None
    assert isinstance(worker.dataset, Survey)
    limit_memory(share(worker.num_workers))
    shared_memory()  # takes the new ceiling
    worker.dataset.pricer.bank.ceiling = ceiling_of_layers()
