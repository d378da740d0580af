"""Random demands for training: wide enough that the agent never meets a kind of demand it has not seen."""

from dataclasses import dataclass

import numpy as np

from plywise.env.arrays import Doubles
from plywise.env.prices.prices import METRICS
from plywise.env.score.demand import Demand
from plywise.env.score.least_plans import COMBINATIONS

TIGHTNESS = 1.7
"""Above 1, ceilings near the least that is reachable come more often: they are the hard ones."""


@dataclass(frozen=True)
class DemandSampler:
    """Draws demands whose cost ceilings can all be held at once.

    Attributes:
        accuracy_drops: ceilings on the accuracy drop to choose from, points; None for no ceiling.
        chances: how often storage, latency and energy have a ceiling.
        largest: largest ceilings of storage, latency and energy, shares of the original's cost.
        margin: smallest ceiling, as a multiple of what is known to be reachable.
        weights: means of the weights of accuracy, storage, latency and energy.
    """

    accuracy_drops: tuple[float | None, ...] = (0.5, 1.0, 2.0, 3.0, None)
    chances: tuple[float, float, float] = (0.7, 0.3, 0.15)
    largest: tuple[float, float, float] = (0.5, 1.0, 1.0)
    margin: float = 1.1
    weights: tuple[float, float, float, float] = (1.0, 0.25, 0.25, 0.05)

    def sample(self, reachable: Doubles, generator: np.random.Generator) -> Demand:
        """Returns a demand.

        Args:
            reachable: `(len(COMBINATIONS), M)` from `Walks.place`.
            generator: source of randomness.
        """
        drop = self.accuracy_drops[generator.integers(len(self.accuracy_drops))]
        chosen = tuple(np.flatnonzero(generator.random(len(METRICS)) < self.chances).tolist())
        ceilings: dict[str, float | None] = {f"max_{name}": None for name in METRICS}
        position = generator.random(len(METRICS)) ** TIGHTNESS
        if chosen:
            least = reachable[COMBINATIONS.index(chosen)]
            for metric in chosen:
                low = least[metric] * self.margin
                high = max(self.largest[metric], low)
                ceilings[f"max_{METRICS[metric]}"] = min(float(low * (high / low) ** position[metric]), 1.0)
        weight = generator.gamma(2.0, np.array(self.weights) / 2.0)
        weight[1:] *= generator.random(len(METRICS)) < 0.8  # some users do not care about a cost at all
        accuracy, storage, latency, energy = np.maximum(weight, (0.1, 0.0, 0.0, 0.0)).tolist()
        return Demand(drop, **ceilings, accuracy_weight=accuracy, storage_weight=storage, latency_weight=latency,
                      energy_weight=energy)  # fmt: skip
