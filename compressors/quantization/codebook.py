"""Weights that share the values of a small table."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plywise.compressors.formats.codebook_format import CodebookFormat
from plywise.compressors.formats.level_format import distinct
from plywise.compressors.formats.scale_search import best_uniform_format
from plywise.compressors.quantization.weight_quantizer import WeightQuantizer
from plywise.compressors.quantization.weight_rounding import rounding_choice
from plywise.compressors.recipes.hyperparameter import choice

ROUNDS = 100
"""Rounds of k-means at most."""


@dataclass(frozen=True)
class Codebook(WeightQuantizer):
    """Clusters the weights of a layer, in units of a scale of each output channel, by weighted k-means.

    One value of the table is exactly zero. K-means starts from the best uniform grid, so the weighted error is never
    above that of uniform quantisation of the same bits. Departures: an error counts by the variance of its input, and
    the scales let channels of different size share one table.
    """

    name: ClassVar[str] = "codebook"
    summary: ClassVar[str] = "smaller files at the same loss as uniform weights of more bits; no integer kernels"
    source: ClassVar[str] = "Han et al., Deep Compression, 2016, section 3 (weight sharing; linear initialisation)"

    bits: int = choice(
        4,
        grid=(8, 4, 3, 2),
        low=2,
        high=8,
        help="bits of a weight: the table has 2**bits values",
        outside="of two values, one would be zero and all weights of the other's opposite sign lost: take 'binary'",
    )
    rounding: str = rounding_choice()

    def format_of(self, weight: Tensor, importance: Tensor) -> CodebookFormat:
        """Returns the format that loses least."""
        rows = weight.float().flatten(1)
        scale = best_uniform_format(rows, importance, self.bits, symmetric=True).scale
        # The largest scale is the unit, so that the errors of huge and tiny weights do not leave float64.
        cost = importance.double() * (scale / scale.max()).double().square()[:, None]
        middle = 2 ** (self.bits - 1)
        entries = clustered((rows / scale[:, None]).flatten(), cost.flatten(), torch.arange(-middle, middle))
        return CodebookFormat(scale, self.bits, entries)


def clustered(values: Tensor, cost: Tensor, start: Tensor) -> Tensor:
    """Returns the centres of one-dimensional k-means, ascending; a centre at zero stays there.

    Args:
        values, cost: `(n,)`: what to cluster, and what a squared error of each costs.
        start: `(count,)` first centres, ascending.
    """
    ordered, order = values.double().sort()
    weight = cost[order].cumsum(0)
    product = (ordered * cost[order]).cumsum(0)
    centres, fixed = start.double(), start == 0
    for _ in range(ROUNDS):
        # Sums over each cluster are differences of running sums: a round takes no pass over the values.
        ends = torch.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2, right=True)
        masses, products = (_between(running, ends) for running in (weight, product))
        new = torch.where(fixed | (masses <= 0), centres, products / masses)
        if torch.equal(new, centres):
            break
        centres = new
    return distinct(centres)


def _between(running: Tensor, ends: Tensor) -> Tensor:
    """Returns the sums between the borders `ends` from the running sums of all."""
    total = torch.cat([torch.zeros(1, dtype=running.dtype), running])
    return total[torch.cat([ends, torch.tensor([len(running)])])].diff(prepend=total[:1])
