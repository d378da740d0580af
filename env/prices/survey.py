"""What each layer of a network comes to alone, worked out by as many processes as torch may use threads."""

import hashlib
import multiprocessing
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any, Self

import numpy as np
import torch

from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank.activation_memory import shared_memory
from plywise.env.execution.executor import Executor
from plywise.env.execution.in_process import InProcess
from plywise.env.execution.process_pool import ProcessPool
from plywise.env.prices.pricing import Pricer, Sizes
from plywise.env.prices.sensitivity import ProbeSamples, Probing, Sensitivity
from plywise.env.storage.memory import ceiling_of_layers
from plywise.env.storage.result_store import ResultStore


@dataclass(frozen=True)
class Surveyed:
    """Of one layer: its name, how sensitive it is to its recipes, and their bytes."""

    layer: str
    sensitivity: Sensitivity
    sizes: Mapping[Recipe, Sizes]

    def plain(self) -> dict[str, Any]:
        """Returns all of it as JSON values."""
        return {
            "layer": self.layer,
            "output_error": self.sensitivity.output_error.tolist(),
            "divergence": self.sensitivity.divergence.tolist(),
            "sizes": {str(recipe): list(astuple(sizes)) for recipe, sizes in self.sizes.items()},
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """Returns what `plain` was made of."""
        sensitivity = Sensitivity(np.array(plain["output_error"]), np.array(plain["divergence"]))
        sizes = {Recipe.parse(recipe): Sizes(*numbers) for recipe, numbers in plain["sizes"].items()}
        return cls(plain["layer"], sensitivity, sizes)


class Survey:
    """All that layers of one network are looked at with; the context of `LayerSurvey`.

    It cannot be pickled (the graph of Torch-Pruning cannot), so processes have to be forked with it in them.
    """

    def __init__(self, pricer: Pricer, probed: ProbeSamples, store: ResultStore, key: str) -> None:
        """Prepares; arguments as for `Probing`."""
        self.pricer, self.store, self.key = pricer, store, key
        self.layers = pricer.network.layers
        self._by_name = {layer.name: layer for layer in self.layers}
        self._probing = Probing(pricer.bank, pricer.recipes, probed, store, key)

    def load(self) -> Self:
        """Takes the ceilings of memory that hold in this process."""
        shared_memory()
        self.pricer.bank.ceiling = ceiling_of_layers()
        return self

    def look(self, name: str) -> Surveyed:
        """Compresses a layer by all of its recipes, and probes it."""
        layer = self._by_name[name]
        return Surveyed(name, self._probing.sensitivity(layer), self.pricer.sizes_of(layer))


@dataclass(frozen=True)
class LayerSurvey:
    """The task of looking at one layer.

    Attributes:
        survey: the key of what it is looked at with.
        layer: its name.
        recipes: a digest of what it is offered, which differs between devices.
    """

    survey: str
    layer: str
    recipes: str

    @property
    def key(self) -> str:
        """What is found is kept under it."""
        return f"{self.survey}/layer/{self.layer}/{self.recipes}"

    def run(self, survey: Survey) -> dict[str, Any]:
        """Returns what is found, as JSON values."""
        return survey.look(self.layer).plain()


def surveyed(survey: Survey) -> Iterator[Surveyed]:
    """Yields what is found of each layer, in order; the pricer of the survey then knows the sizes.

    Where processes can be forked, each takes a layer at a time and computes with one thread. What they compress is
    found in the bank's folder afterwards.

    Raises:
        PlywiseError: as the techniques do.
    """
    offered = survey.pricer.recipes
    tasks = [LayerSurvey(survey.key, layer.name, _digest(offered[layer.name])) for layer in survey.layers]
    with _executor(survey, len(tasks)) as executor:
        for found in map(Surveyed.of, executor.results(tasks)):
            survey.pricer.take_sizes(found.layer, found.sizes)
            yield found


def _digest(recipes: Iterable[Recipe]) -> str:
    return hashlib.sha256("\n".join(map(str, recipes)).encode()).hexdigest()[:16]


def _executor(survey: Survey, most: int) -> Executor[Survey]:
    threads = torch.get_num_threads()
    if threads == 1 or sys.platform != "linux" or multiprocessing.current_process().daemon:
        return InProcess(survey, survey.store)
    return ProcessPool(min(threads, most), survey, survey.store, forked=True)
