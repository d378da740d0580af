"""Random factors that make a few price tables act like many, and estimates act like estimates."""

from dataclasses import dataclass

import numpy as np

from plywise.env.arrays import Doubles, Ints
from plywise.env.prices.price_stack import NUM_METRICS
from plywise.env.score.uncertainty import LAYER, NETWORK
from plywise.env.walk.walk import Factors, Walks


@dataclass(frozen=True)
class Randomisation:
    """Lognormal factors of one episode; all default to none.

    Attributes:
        noise: error of the estimates. The true drop, which only the final score knows, is the estimate times factors
            of spread NETWORK * noise for all layers and LAYER * noise for each, of mean 1, plus `noise` times what
            counting the network's validation samples adds.
        jitter: variety of networks. Drops and costs of each layer, shown and true, are multiplied by factors of
            spread 0.5 * jitter and 0.3 * jitter.
    """

    noise: float = 0.0
    jitter: float = 0.0

    def place(self, walks: Walks, rows: Ints, table: Ints, generator: np.random.Generator) -> Doubles:
        """Puts rows at the start of networks with factors of their own; returns what `Walks.place` does."""
        shape = (len(rows), walks.stack.num_layers + 1)
        network = generator.normal(0.0, NETWORK, (len(rows), 1))
        truth = self.noise * (network + generator.normal(0.0, LAYER, shape))
        truth -= 0.5 * self.noise**2 * (NETWORK**2 + LAYER**2)  # the mean of a lognormal variable lies above its median
        drop = self.jitter * generator.normal(0.0, 0.5, shape)
        cost = self.jitter * generator.normal(0.0, 0.3, (*shape, NUM_METRICS))
        counting_noise = self.noise * generator.normal(size=len(rows))
        drops, truths, costs = (np.exp(exponent, dtype=np.float32) for exponent in (drop, truth, cost))
        return walks.place(rows, table, Factors(drops, truths, costs, counting_noise))
