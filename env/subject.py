"""A network under study: everything that is found out about it once, before anyone decides how to compress it."""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from plywise.compressors.errors import DataError, FileFormatError, ModelError
from plywise.compressors.packing.packed_file import save_packed
from plywise.compressors.packing.packed_module import packed_size
from plywise.compressors.recipes.entry_points import load_entry_points
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe, Technique
from plywise.env.bank.bank import Bank, Stitched
from plywise.env.bank.bank_folder import BankFolder
from plywise.env.bank.repair import FULL, Repair
from plywise.env.bank.scorer import Scorer
from plywise.env.calibration.calibration import calibrate
from plywise.env.costs.chains import realised_chain
from plywise.env.costs.energy import energy_mj
from plywise.env.costs.latency import Latencies, LatencyTable
from plywise.env.costs.network_latency import NetworkLatency
from plywise.env.execution.progress import Tracker, untracked
from plywise.env.network.channel_groups import NORMS
from plywise.env.network.menu import catalogue
from plywise.env.network.network import Layer, Network
from plywise.env.network.samples import Samples, model_digest
from plywise.env.prices.price_file import load_prices, save_prices
from plywise.env.prices.prices import Baseline, PriceTable
from plywise.env.prices.pricing import Pricer
from plywise.env.prices.sensitivity import ProbeSamples, Sensitivity, divergence
from plywise.env.prices.survey import Survey, surveyed
from plywise.env.score.early_stopping import EarlyStopping, Hopeless, InterimResult
from plywise.env.score.points_per_nat import points_per_nat
from plywise.env.storage.cache import cache_folder
from plywise.env.storage.code_digest import code_digest
from plywise.env.storage.result_store import ResultStore
from plywise.env.storage.timing_lock import working

CODE = ("plywise.env.subject", "plywise.compressors")
"""What decides the figures of a subject; techniques are found by the folder that they are in, not by imports."""

TRIAL_PRICES = tuple(float(price) for price in np.geomspace(1e-4, 10.0, 10))
"""Nats per share of storage at which trial plans are made, to learn what a nat costs in accuracy."""

DIGESTED = 16
"""Calibration inputs on which networks of the same modules and weights are told apart by what they put out."""


@dataclass(frozen=True)
class Measured:
    """A plan looked at for real.

    Attributes:
        accuracy: on the validation samples, percent.
        divergence: of its outputs from the original's, nats.
        cost: storage bytes, latency ms, energy mJ.
    """

    accuracy: float
    divergence: float
    cost: tuple[float, float, float]


class Subject:
    """A network with its calibration, its bank and its prices.

    Attributes:
        network, bank: see their classes.
        validation: held-out samples that plans are scored on, in random order.
        accuracy: of the original on them, percent.
    """

    def __init__(
        self,
        model: nn.Module,
        calibration: Samples,
        validation: Samples,
        name: str = "network",
        latency: Latencies | None = None,
        track: Tracker = untracked,
        seed: int = 0,
        repair: Repair = FULL,
    ) -> None:
        """Studies a network; what an earlier run has found is read from the cache.

        Args:
            model: maps `(n, ...)` to `(n, classes)`.
            calibration: training samples, a few hundred; they run as one batch.
            validation: samples that the network was not trained on.
            name: what to call it.
            latency: of the device; this machine's where None.
            track: shows progress.
            seed: of every random choice.
            repair: of compressed networks; less than all of it is for comparison.

        Raises:
            ModelError: if the network does not run, gives outputs that are no numbers or has nothing to compress.
            DataError: if there are no samples.
        """
        for samples, what in ((calibration, "calibration"), (validation, "validation")):
            if len(samples) == 0:
                raise DataError(f"there are no {what} samples; at least a few hundred are needed")
        self.network = Network.of(model, calibration.inputs[:4], name)
        self.validation = validation.shuffled().laid_out(self.network.memory_format)
        self.latency: Latencies = latency or LatencyTable()
        self.key = self._key(model, calibration, validation, seed, repair)
        laid_out = calibration.laid_out(self.network.memory_format)
        with working():
            calibrated = calibrate(self.network, laid_out.inputs, laid_out.labels, seed)
        self.bank = Bank(self.network, calibrated, BankFolder.cached(self.key), repair)
        self.store = ResultStore(cache_folder() / "results.sqlite")
        self._original = self.validation.logits(self.network.model)
        if not self._original.isfinite().all():
            raise ModelError(f"{name}: some outputs are no numbers on the validation samples; are its weights?")
        self.accuracy = self.validation.accuracy(self._original)
        self._track = track

    @cached_property
    def table(self) -> PriceTable:
        """The price table: read from the cache, else made the first time that it is asked for, which takes long."""
        path = self._table_path
        if self.priced:
            try:
                return replace(load_prices(path), network=self.network.name)
            except FileFormatError:
                path.unlink(missing_ok=True)
        pricer = Pricer(self.bank, self.whole)
        probed = ProbeSamples.of(self.validation, self._original)
        steps = surveyed(Survey(pricer, probed, self.store, self.key))
        looked_at = self._track(steps, f"{self.network.name}: how sensitive each layer is", len(self.layers))
        found = {each.layer: each.sensitivity for each in looked_at}
        chance = 100.0 / self._original.shape[1]
        baseline = Baseline(self.accuracy, min(chance, self.accuracy), len(self.validation))
        points, bytes_outside = self._tried(pricer, found, baseline)
        table = pricer.price(found, points, bytes_outside, baseline)
        save_prices(table, path)
        return table

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.bank, self.validation)

    @cached_property
    def whole(self) -> NetworkLatency:
        """The latency of the whole network."""
        return NetworkLatency(self.network, self.latency)

    @property
    def priced(self) -> bool:
        """Whether the price table is known already, so that asking for it costs nothing."""
        return self._table_path.exists()

    @property
    def _table_path(self) -> Path:
        return cache_folder("prices") / f"{_digest(self.key, *self._measures)}.safetensors"

    @cached_property
    def _measures(self) -> tuple[str, str]:
        """What latencies rest on: figures of another measurement must not meet them."""
        return self.latency.device.fingerprint, repr(self.whole.overhead)

    def plan(self, actions: Sequence[int]) -> Plan:
        """Returns the plan of one slot per layer of the price table."""
        each = zip(self.network.layers, self.table.recipes, actions, strict=True)
        return Plan(self.network.name, {layer.name: Recipe.parse(slots[action]) for layer, slots, action in each})

    def measure(self, plan: Plan) -> Measured:
        """Looks at a plan for real: stitches it and runs it over the validation samples; no plan twice."""
        found = self.race(plan, lambda _: False)
        assert isinstance(found, Measured)
        return found

    def race(self, plan: Plan, hopeless: Hopeless) -> Measured | InterimResult:
        """Does what `measure` does, but stops at the first look at which the plan is hopeless, and returns that look.

        All looks are kept, so it makes no difference to what is returned who has looked at the plan before. What is
        known of all samples has a key of its own, so a process that stops early cannot overwrite what another found.
        """
        recipes = (f"{layer}={recipe}" for layer, recipe in plan.items())
        digest = _digest(*self._measures, *recipes)
        whole, part = f"{self.key}/built/{digest}", f"{self.key}/looks/{digest}"
        found: dict[str, Any] = self.store.get(whole) or self.store.get(part) or {"looks": []}
        stopped = next((look for look in (InterimResult(*each) for each in found["looks"]) if hopeless(look)), None)
        if stopped is None and "cost" not in found:
            stopping = EarlyStopping(self.validation.labels, self._original, hopeless)
            stitched, logits = self._scorer.run(plan, enough=stopping)
            stopped, found = stopping.stopped, {"looks": [astuple(look) for look in stopping.looks]}
            if stopped is None:
                found |= {"accuracy": self.validation.accuracy(logits), "cost": self.cost(stitched)}
                found["divergence"] = divergence(self._original, logits)
            self.store.put(whole if stopped is None else part, found)
        if stopped is not None:
            return stopped
        storage, latency, energy = found["cost"]
        return Measured(found["accuracy"], found["divergence"], (storage, latency, energy))

    def pack(self, model: nn.Module, path: Path) -> int:
        """Writes the file of packed weights that is handed over and returns its bytes."""
        return save_packed(model, self.network.original, path, {"model": self.network.name})

    def packed_bytes(self, model: nn.Module) -> int:
        """Returns the bytes of the file that `pack` would write."""
        with tempfile.TemporaryDirectory() as folder:
            return self.pack(model, Path(folder) / "weights")

    def cost(self, stitched: Stitched) -> tuple[float, float, float]:
        """Returns the file's bytes, the latency and the modelled energy of a stitched plan in its real shapes."""
        modules = self._realised(stitched)
        chains = {layer.name: realised_chain(modules[layer.name], layer) for layer in self.layers}
        storage = float(self.packed_bytes(stitched.model))
        norms = {name: norm.num_features for name, norm in stitched.replaced.items() if isinstance(norm, NORMS)}
        latency = self.whole.measured(chains, norms)
        units = self.latency.device.energies
        return storage, latency, sum(energy_mj(chain, units) for chain in chains.values())

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers of the network, in the order of the walk."""
        return self.network.layers

    def _tried(self, pricer: Pricer, found: dict[str, Sensitivity], baseline: Baseline) -> tuple[float, float]:
        """Learns from trial plans what cannot be known layer by layer.

        Returns:
            Points of accuracy that a nat of summed single-layer divergence costs, which include how layers interact.
            And the file's bytes outside the layers, the most that were seen: normalisations that stand alone shrink
            where channels are cut.
        """
        trials = _trial_plans(self.network, pricer, found)
        tracked = self._track(trials, f"{self.network.name}: trial plans", len(trials))
        nats, seen = zip(*((expected, self._trial(plan)) for plan, expected in tracked), strict=True)
        accuracies, bytes_outside = np.array(seen).T
        drops = baseline.accuracy - accuracies
        return points_per_nat(np.array(nats), drops, baseline.room, baseline.samples), float(bytes_outside.max())

    def _trial(self, plan: Plan) -> tuple[float, float]:
        """Returns the accuracy of a plan and the bytes of its file that no layer accounts for; no plan twice."""
        name = f"{self.key}/trial/{_digest(*map(str, plan.values()))}"
        found = self.store.get(name)
        if found is None:
            stitched, logits = self._scorer.run(plan)
            accuracy = self.validation.accuracy(logits)
            in_layers = sum(map(packed_size, self._realised(stitched).values()))
            found = [accuracy, self.packed_bytes(stitched.model) - in_layers]
            self.store.put(name, found)
        return float(found[0]), float(found[1])

    def _realised(self, stitched: Stitched) -> dict[str, nn.Module]:
        return {
            layer.name: stitched.replaced.get(layer.name, self.network.modules[layer.name]) for layer in self.layers
        }

    def _key(self, model: nn.Module, calibration: Samples, validation: Samples, seed: int, repair: Repair) -> str:
        outside = (technique.__module__ for technique in load_entry_points(Technique))
        parts = (
            code_digest(*CODE, *outside),
            model_digest(model, calibration.inputs[:DIGESTED]),
            calibration.digest(),
            validation.digest(),
            _digest(*map(str, catalogue())),
            str(seed),
            repr(repair),
        )
        return _digest(*parts)


def _trial_plans(network: Network, pricer: Pricer, found: dict[str, Sensitivity]) -> list[tuple[Plan, float]]:
    """Plans of the cheapest sum of divergence and storage at several prices, with their summed divergences."""
    sizes = {
        layer.name: np.array([pricer.sizes(layer, recipe).total for recipe in pricer.recipes[layer.name]])
        for layer in network.layers
    }
    whole = sum(size[0] for size in sizes.values())
    trials: list[tuple[Plan, float]] = []
    for price in TRIAL_PRICES:
        recipes, expected = {}, 0.0
        for layer in network.layers:
            losses = found[layer.name].divergence
            best = int(np.argmin(losses + price * sizes[layer.name] / whole))
            recipes[layer.name] = pricer.recipes[layer.name][best]
            expected += float(losses[best])
        if not trials or recipes != dict(trials[-1][0]):  # two prices may lead to one plan
            trials.append((Plan(network.name, recipes), expected))
    return trials


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
