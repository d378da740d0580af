"""What the price table of a network takes to make, and how well it predicts the bytes of packed files."""

import copy
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from plywise.agent.search.search_method import SearchMethod, SearchResult
from plywise.env.costs.devices import open_device
from plywise.env.exact_evaluator import ExactEvaluator
from plywise.env.prices.pricing import STORAGE_MARGIN, Pricer
from plywise.env.prices.sensitivity import ProbeSamples, Probing
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import PlanEstimator
from plywise.env.storage.result_store import ResultStore
from plywise.experiments.commands.study import study_network
from plywise.experiments.data.dataset import Dataset
from plywise.experiments.studies.fidelity_study import random_plans
from plywise.experiments.workbench.parts import Parts

DEVICE = "raspberry-pi-4"
"""A declared one: its latencies are computed, so that none are measured here."""

FORWARD_PASSES = 3
"""Before and after each part: the machine changes its speed."""


class PriceCheck:
    """The table of one network, made from nothing.

    Attributes:
        name: of the network.
        seconds: of the processor, by what they went into.
        forward: seconds of one forward pass of the original over the calibration images, median of passes in between.
    """

    def __init__(self, name: str, network: nn.Module, dataset: Dataset) -> None:
        """Makes the table; with an empty cache, or it is found there.

        Args:
            name: of the network.
            network: as for `study_network`.
            dataset: as for `study_network`.
        """
        self.name = name
        timed = Parts(time.process_time)
        self.seconds = timed.seconds
        with timed("calibration"):
            self.subject = study_network(network, name, dataset, progress=False, latency=open_device(DEVICE)).subject
        subject, pricer = self.subject, Pricer(self.subject.bank, self.subject.whole)
        passes = self._forwards()
        with timed("compressing layers"):
            for layer in subject.layers:
                pricer.sizes_of(layer)
        passes += self._forwards()
        probed = ProbeSamples.of(subject.validation, subject.reference)
        with timed("sensitivities"):
            probing = Probing(subject.bank, pricer.recipes, probed, subject.store, subject.key)
            for layer in subject.layers:
                probing.sensitivity(layer)
        passes += self._forwards()
        with timed("trial plans, prices"):
            self.table = subject.price()  # finds layers and probes made
        self.forward = median(passes + self._forwards())

    @property
    def equivalents(self) -> dict[str, float]:
        """How many forward passes each part took."""
        return {part: seconds / self.forward for part, seconds in self.seconds.items()}

    def storage_errors(self, count: int) -> NDArray[np.float64]:
        """Returns by how much the table is off, relative to the file, for random plans.

        Returns:
            `(count, 2)`: as promised, and without the margin that is added on purpose.
        """
        plans = random_plans(self.table, count)
        promised = PlanEstimator(self.table).estimate(plans)[0][:, 0] * float(self.table.original[0])
        fixed = float(self.table.fixed[0])
        expected = fixed + (promised - fixed) / STORAGE_MARGIN
        real = np.array([self._file_bytes(plan.tolist()) for plan in plans])
        errors: NDArray[np.float64] = np.stack([promised, expected], 1) / real[:, None] - 1.0
        return errors

    def search(self, method: SearchMethod, demand: Demand, budget: int, early: bool) -> tuple[float, int, SearchResult]:
        """Lets a method score plans; nothing of earlier searches is reused but compressed layers.

        Returns:
            Seconds of the processor, how many plans were stopped early, and what was found.
        """
        subject = copy.copy(self.subject)
        vars(subject).pop("_scorer", None)  # remembers outputs
        with tempfile.TemporaryDirectory() as folder:
            subject.store = ResultStore(Path(folder) / "results.sqlite")
            evaluator = ExactEvaluator(subject, demand, early)
            started = time.process_time()
            result = method.search(evaluator, budget, 0)
            return time.process_time() - started, evaluator.stopped, result

    def _file_bytes(self, actions: list[int]) -> int:
        stitched = self.subject.bank.stitch(self.subject.plan(actions))
        with tempfile.TemporaryDirectory() as folder:
            return self.subject.pack(stitched.model, Path(folder) / "weights")

    def _forwards(self) -> list[float]:
        calibration, taken = self.subject.bank.calibration.samples.laid_out(torch.contiguous_format), []
        for _ in range(FORWARD_PASSES):
            started = time.process_time()
            list(calibration.outputs(self.subject.network.model))
            taken.append(time.process_time() - started)
        return taken


@contextmanager
def fresh_cache() -> Iterator[None]:
    """Lets nothing be found that an earlier run has kept."""
    before = os.environ.get("PLYWISE_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PLYWISE_CACHE"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["PLYWISE_CACHE"]
            else:
                os.environ["PLYWISE_CACHE"] = before
