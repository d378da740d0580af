"""Weights as powers of two around the two centres that weights gather at."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from plywise.compressors.formats.recentralized_format import RecentralizedFormat
from plywise.compressors.formats.scale_search import largest_weights
from plywise.compressors.formats.weight_format import short
from plywise.compressors.quantization.weight_quantizer import WeightQuantizer
from plywise.compressors.quantization.weight_rounding import rounding_choice
from plywise.compressors.recipes.hyperparameter import choice

TOPS = (1.0, 2.0, 4.0)
"""Candidates of the largest power of two."""

SAMPLE = 4096
"""Quantiles that the mixture is fitted to."""

ROUNDS = 30
"""Rounds of expectation maximisation."""


@dataclass(frozen=True)
class Recentralized(WeightQuantizer):
    """Fits a mixture of two normal distributions to the weights that are not zero and rounds around each centre.

    Each weight becomes zero, or the centre of a component plus zero or a signed power of two times its deviation.
    Departures: a scale of each output channel is taken out before; the alphabets of both components are one, so each
    weight takes the nearest value of either; the largest power is the one of three that loses least; layers whose
    components overlap are not handed to plain powers of two, which are a technique of their own.
    """

    name: ClassVar[str] = "recentralized"
    summary: ClassVar[str] = (
        "for pruned layers, whose weights gather around two centres: products are shifts and two sums"
    )
    source: ClassVar[str] = (
        "Zhao et al., Focused Quantization for Sparse CNNs, 2019, sections 3.2 and 3.3; Zhao et al., Mayo, 2018"
    )

    bits: int = choice(4, grid=(5, 4, 3), low=3, high=8, help="bits of a weight")
    rounding: str = rounding_choice()

    def format_of(self, weight: Tensor, importance: Tensor) -> RecentralizedFormat:
        """Returns the format that loses least."""
        rows = weight.float().flatten(1)
        unit = largest_weights(rows)
        used = (rows != 0).sum(1).clamp(min=1)
        scale = short(unit * ((rows / unit[:, None]).square().sum(1) / used).sqrt().clamp(min=1e-3))
        relative = rows / scale[:, None]
        centres, deviations = two_normals(relative[relative != 0])
        # The first scale that is tried is one, so the errors are those of the relative weights.
        fmts = [RecentralizedFormat(torch.ones(1), self.bits, centres, deviations * top) for top in TOPS]
        lost = [((fmt.decode(fmt.encode(relative)) - relative).square() * importance).sum() for fmt in fmts]
        return replace(fmts[int(torch.stack(lost).argmin())], scale=scale)


def two_normals(values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns means and deviations `(2,)` of a mixture of two normal distributions, by expectation maximisation.

    Args:
        values: `(n,)`, of which evenly spaced quantiles are used; starts from the negative and the positive ones.
    """
    if not len(values):
        return torch.zeros(2), torch.ones(2)
    ordered = values.double().sort().values
    sample = ordered[torch.linspace(0, len(ordered) - 1, min(len(ordered), SAMPLE)).long()]
    share = torch.stack([sample < 0, sample >= 0]).double()  # (component, value)
    for _ in range(ROUNDS):
        mass = share.sum(1).clamp(min=1e-6)
        mean = share @ sample / mass
        spread = ((share * (sample - mean[:, None]).square()).sum(1) / mass).sqrt().clamp(min=0.01)
        density = (
            mass.log()[:, None] - spread.log()[:, None] - ((sample - mean[:, None]) / spread[:, None]).square() / 2
        )
        share = density.softmax(0)
    return mean.float(), spread.float()
