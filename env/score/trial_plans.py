"""Plans that are tried before any search, to learn what cannot be known layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plywise.compressors.recipes.plan import Plan
from plywise.env.bank.scorer import Scorer
from plywise.env.execution.progress import Tracker
from plywise.env.network.network import Network
from plywise.env.prices.plan_costs import PlanCosts
from plywise.env.prices.pricing import Pricer
from plywise.env.prices.sensitivity import Sensitivity
from plywise.env.storage.result_store import ResultStore
from plywise.env.subject_key import digest_of
from plywise.env.task.samples import Samples

TRIAL_PRICES = tuple(float(price) for price in np.geomspace(1e-4, 10.0, 10))
"""Nats per share of storage at which trial plans are made, to learn what a nat costs in accuracy."""


@dataclass(frozen=True)
class Tried:
    """What trial plans came to.

    Attributes:
        nats: `(trials,)`, the summed single-layer divergence of each.
        accuracies: `(trials,)` on the validation samples, points.
        bytes_outside: of the file, those that no layer accounts for; the most that were seen, for normalisations that
            stand alone shrink where channels are cut.
    """

    nats: NDArray[np.float64]
    accuracies: NDArray[np.float64]
    bytes_outside: float


class TrialPlans:
    """Runs plans of the cheapest sum of divergence and storage at several prices."""

    def __init__(self, scorer: Scorer, samples: Samples, costs: PlanCosts, store: ResultStore, key: str) -> None:
        """Prepares.

        Args:
            scorer: of plans.
            samples: validation samples.
            costs: of the network.
            store: where results are kept.
            key: of the network under study.
        """
        self._scorer, self._samples = scorer, samples
        self._costs, self._store, self._key = costs, store, key

    def run(self, pricer: Pricer, found: Mapping[str, Sensitivity], track: Tracker) -> Tried:
        """Runs the plans that follow from the sensitivities of the layers, which takes long; none is run twice."""
        network = pricer.network
        plans = cheapest_plans(network, pricer, found)
        tracked = track(plans, f"{network.name}: trial plans", len(plans))
        nats, seen = zip(*((expected, self._result(plan)) for plan, expected in tracked), strict=True)
        accuracies, bytes_outside = np.array(seen).T
        return Tried(np.array(nats), accuracies, float(bytes_outside.max()))

    def _result(self, plan: Plan) -> tuple[float, float]:
        """Returns the accuracy of a plan and the bytes of its file that no layer accounts for."""
        name = f"{self._key}/trial/{digest_of(*map(str, plan.values()))}"
        found = self._store.get(name)
        if found is None:
            stitched, score = self._scorer.run(plan, self._samples.score)
            found = [score.value, self._costs.bytes_outside(stitched)]
            self._store.put(name, found)
        return float(found[0]), float(found[1])


def cheapest_plans(network: Network, pricer: Pricer, found: Mapping[str, Sensitivity]) -> list[tuple[Plan, float]]:
    """Returns plans of the cheapest sum of divergence and storage at several prices, with their summed divergences."""
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
