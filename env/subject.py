"""A network under study: everything that is found out about it once, before anyone decides how to compress it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from plywise.compressors.errors import ConfigurationError, DataError, FileFormatError, ModelError
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank.bank import Bank, Stitched
from plywise.env.bank.bank_folder import BankFolder
from plywise.env.bank.repair import FULL, Repair
from plywise.env.bank.scorer import Scorer
from plywise.env.calibration.calibration import calibrate
from plywise.env.costs.latency import Latencies, LatencyTable
from plywise.env.costs.network_latency import NetworkLatency
from plywise.env.exact_measurement import ExactMeasurement, Measured
from plywise.env.execution.progress import Tracker, phase, untracked
from plywise.env.network.network import Layer, Network
from plywise.env.prices.plan_costs import PlanCosts
from plywise.env.prices.price_file import load_prices, save_prices
from plywise.env.prices.prices import Baseline, PriceTable
from plywise.env.prices.pricing import Pricer
from plywise.env.prices.sensitivity import ProbeSamples
from plywise.env.prices.survey import Survey, surveyed
from plywise.env.score.early_stopping import Hopeless, InterimResult
from plywise.env.score.points_per_nat import points_per_nat
from plywise.env.score.trial_plans import TrialPlans
from plywise.env.storage.cache import cache_folder, tell_damaged
from plywise.env.storage.result_store import ResultStore
from plywise.env.storage.timing_lock import working
from plywise.env.subject_key import digest_of, key_of
from plywise.env.task.batch import alike
from plywise.env.task.interface import Interface
from plywise.env.task.judge import Reference, Silenced
from plywise.env.task.outputs import floats_in
from plywise.env.task.samples import Samples

EXAMPLE = 4
"""Items that a network is traced on."""

WHOLE = 100.0
"""Points that count as the room of a metric for which nobody knows what guessing reaches."""


class Subject:
    """A network with its calibration, its bank and its prices.

    It holds together what others do: the key (`subject_key.py`), trial plans (`score/trial_plans.py`), exact
    measurement (`exact_measurement.py`) and costs (`prices/plan_costs.py`).

    Attributes:
        network, bank: see their classes.
        validation: held-out samples that plans are scored on, in random order.
        accuracy: of the original on them, points.
        latency: of the device.
        reference: gives the original's outputs on a batch.
        key, store: what all figures are kept under, and where.
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
        ignored: Sequence[str | type] = (),
    ) -> None:
        """Studies a network; what an earlier run has found is read from the cache.

        Args:
            model: any network.
            calibration: training samples, a few hundred, held in memory.
            validation: samples that the network was not trained on, with the same judge.
            name: what to call it.
            latency: of the device; this machine's where None.
            track: shows progress.
            seed: of every random choice.
            repair: of compressed networks; less than all of it is for comparison.
            ignored: layers to leave as they are, as for `Network.of`.

        Raises:
            ModelError: if the network does not run, gives outputs that are no numbers or has nothing to compress.
            DataError: if there are no samples.
        """
        for samples, what in ((calibration, "calibration"), (validation, "validation")):
            if len(samples) == 0:
                raise DataError(f"there are no {what} samples; at least a few hundred are needed")
        judge = calibration.judge
        self.network = Network.of(model, calibration.joined(EXAMPLE), name, judge.forward, ignored)
        self.validation = validation.shuffled().laid_out(self.network.memory_format)
        self.latency: Latencies = latency or LatencyTable()
        self.key = key_of(self.network, calibration, validation, seed, repair)
        laid_out = calibration.laid_out(self.network.memory_format)
        with working(), phase(track, f"{name}: calibrating"):
            calibrated = calibrate(self.network, laid_out, seed)
        self.bank = Bank(self.network, calibrated, BankFolder.cached(self.key), repair)
        self.store = ResultStore(cache_folder() / "results.sqlite")
        self.reference = Reference(self.network.model, judge.forward)
        with phase(track, f"{name}: scoring the original"):
            for batch in self.validation:
                if not all(bool(tensor.isfinite().all()) for tensor in floats_in(self.reference(batch))):
                    raise ModelError(f"{name}: some outputs are no numbers on the validation samples; are its weights?")
            self._original = self.validation.score(self.network.model)
        self.accuracy = self._original.value
        self._track, self._calibration = track, calibration

    def price(self) -> PriceTable:
        """Returns the price table: from the cache, else it is made, which takes minutes and is done once."""
        return self._prices

    def is_priced(self) -> bool:
        """Returns whether the price table is known, so that `price` takes no time; may calibrate the device first."""
        return self._table_path.exists()

    @cached_property
    def whole(self) -> NetworkLatency:
        """The latency of the whole network; nothing is measured before it is asked."""
        return NetworkLatency(self.network, self.latency)

    def plan(self, actions: Sequence[int]) -> Plan:
        """Returns the plan of one slot per layer of the price table."""
        each = zip(self.network.layers, self._prices.recipes, actions, strict=True)
        return Plan(self.network.name, {layer.name: Recipe.parse(slots[action]) for layer, slots, action in each})

    def measure(self, plan: Plan) -> Measured:
        """Does what `ExactMeasurement.measure` does: a whole pass over the samples and a timing, once for a plan."""
        return self._exact.measure(plan)

    def race(self, plan: Plan, hopeless: Hopeless) -> Measured | InterimResult:
        """Does what `ExactMeasurement.race` does."""
        return self._exact.race(plan, hopeless)

    def pack(self, model: nn.Module, path: Path) -> int:
        """Writes the file of packed weights that is handed over and returns its bytes."""
        return self._costs.pack(model, path)

    def packed_bytes(self, model: nn.Module) -> int:
        """Returns the bytes of the file that `pack` would write."""
        return self._costs.packed_bytes(model)

    def cost(self, stitched: Stitched) -> tuple[float, float, float]:
        """Does what `PlanCosts.measure` does: real bytes, measured latency, modelled energy."""
        return self._costs.measure(stitched)

    @cached_property
    def other_inputs(self) -> Mapping[str, Tensor] | None:
        """Inputs of a calibration batch of other shapes than the example's, by name; None where all are alike."""
        example = self.network.example
        other = next((batch for batch in self._calibration if not alike(batch, example)), None)
        if other is None:
            return None
        network = self.network
        found = Interface.of(network.model, network.forward, other).inputs
        return found if found.keys() == network.interface.inputs.keys() else None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers of the network, in the order of the walk."""
        return self.network.layers

    @cached_property
    def _prices(self) -> PriceTable:
        path = self._table_path
        if self.is_priced():
            try:
                return replace(load_prices(path), network=self.network.name)
            except FileFormatError:
                path.unlink(missing_ok=True)
                tell_damaged(str(path))
        table = self._priced_anew()
        save_prices(table, path)
        return table

    def _priced_anew(self) -> PriceTable:
        pricer = Pricer(self.bank, self.whole)
        probed = ProbeSamples.of(self.validation, self.reference)
        steps = surveyed(Survey(pricer, probed, self.store, self.key))
        looked_at = self._track(steps, f"{self.network.name}: how sensitive each layer is", len(self.layers))
        found = {each.layer: each.sensitivity for each in looked_at}
        baseline = Baseline(self.accuracy, min(self._chance, self.accuracy), len(self.validation))
        tried = TrialPlans(self._scorer, self.validation, self._costs, self.store, self.key).run(
            pricer, found, self._track
        )
        drops = baseline.accuracy - tried.accuracies
        points = points_per_nat(tried.nats, drops, baseline.room, baseline.samples)
        with phase(self._track, f"{self.network.name}: putting prices together"):
            return pricer.price(found, points, tried.bytes_outside, baseline)

    @property
    def _chance(self) -> float:
        """What guessing reaches, points: where the metric does not know it, the original with zeros for outputs."""
        judge, (first,) = self.validation.judge, self.validation.first(1)
        known = judge.metric.chance(self.reference(first))
        if known is not None:
            return known
        try:
            return self.validation.score(Silenced(self.network.model)).value
        except ConfigurationError:  # a user's metric may take no such outputs
            return self.accuracy - WHOLE

    @property
    def _table_path(self) -> Path:
        return cache_folder("prices") / f"{digest_of(self.key, *self._measures)}.safetensors"

    @cached_property
    def _measures(self) -> tuple[str, ...]:
        """What latencies rest on: figures of another measurement must not meet them."""
        device = self.latency.device
        with phase(self._track, f"{self.network.name}: timing whole graphs"):
            overhead = self.whole.overhead
        return device.fingerprint, str(device.integer_weight_bits), repr(overhead)

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.bank)

    @cached_property
    def _costs(self) -> PlanCosts:
        return PlanCosts(self.network, self.whole)

    @cached_property
    def _exact(self) -> ExactMeasurement:
        return ExactMeasurement(
            self._scorer, self._costs, self.validation, self._original, self.store, self.key, self._measures
        )
