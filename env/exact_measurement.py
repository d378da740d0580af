"""Plans looked at for real: put together, run over the validation samples, and timed."""

from dataclasses import astuple, dataclass
from typing import Any

from plywise.compressors.recipes.plan import Plan
from plywise.env.bank.scorer import Scorer
from plywise.env.prices.plan_costs import PlanCosts
from plywise.env.score.early_stopping import EarlyStopping, Hopeless, InterimResult, can_stop
from plywise.env.storage.result_store import ResultStore
from plywise.env.subject_key import digest_of
from plywise.env.task.metrics import Score
from plywise.env.task.samples import Samples


@dataclass(frozen=True)
class Measured:
    """A plan looked at for real.

    Attributes:
        accuracy: on the validation samples, points.
        cost: storage bytes, latency ms, energy mJ.
    """

    accuracy: float
    cost: tuple[float, float, float]


class ExactMeasurement:
    """Looks at plans of one network; what was found about one is kept."""

    def __init__(
        self,
        scorer: Scorer,
        costs: PlanCosts,
        samples: Samples,
        original: Score,
        store: ResultStore,
        key: str,
        measures: tuple[str, ...],
    ) -> None:
        """Prepares.

        Args:
            scorer: of plans.
            samples: validation samples.
            costs: of the network.
            original: score of the original on them.
            store: where results are kept.
            key: of the network under study.
            measures: what latencies rest on: figures of another measurement must not meet them.
        """
        self._scorer, self._samples, self._costs, self._original = scorer, samples, costs, original
        self._store, self._key, self._measures = store, key, measures

    def measure(self, plan: Plan) -> Measured:
        """Looks at a plan for real: stitches it, runs it over all samples and times it; none twice."""
        found = self.race(plan, lambda _: False)
        assert isinstance(found, Measured)
        return found

    def race(self, plan: Plan, hopeless: Hopeless) -> Measured | InterimResult:
        """Does what `measure` does, but stops at the first look at which the plan is hopeless, and returns that look.

        All looks are kept, so it makes no difference to what is returned who has looked at the plan before. What is
        known of all samples has a key of its own, so a process that stops early cannot overwrite what another found.
        """
        recipes = (f"{layer}={recipe}" for layer, recipe in plan.items())
        digest = digest_of(*self._measures, *recipes)
        whole, part = f"{self._key}/built/{digest}", f"{self._key}/looks/{digest}"
        found: dict[str, Any] = self._store.get(whole) or self._store.get(part) or {"looks": []}
        stopped = next((look for look in (InterimResult(*each) for each in found["looks"]) if hopeless(look)), None)
        if stopped is None and "cost" not in found:
            stopping = self._stopping(hopeless)
            stitched, score = self._scorer.run(plan, lambda model: self._samples.score(model, stopping))
            if stopping is not None:
                stopped, found = stopping.stopped, {"looks": [astuple(look) for look in stopping.looks]}
            if stopped is None:
                found |= {"accuracy": score.value, "cost": self._costs.measure(stitched)}
            self._store.put(whole if stopped is None else part, found)
        if stopped is not None:
            return stopped
        storage, latency, energy = found["cost"]
        return Measured(found["accuracy"], (storage, latency, energy))

    def _stopping(self, hopeless: Hopeless) -> EarlyStopping | None:
        """Returns what stops plans early, None where nothing can tell that they are hopeless."""
        before, bounds = self._original.values, self._samples.judge.bounds
        if before is None or not self._samples.even or not can_stop(before, bounds):
            return None
        return EarlyStopping(before, hopeless, bounds)
