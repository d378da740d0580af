"""A ReLU inside the chain that takes a layer's place, and what it makes of moments."""

import math

import torch
from torch import Tensor, nn

FARTHEST = 30.0
"""Deviations from zero beyond which a normal variable is all cut or all kept, whatever the precision."""


class Rectifier(nn.Module):
    """A ReLU that knows its channels, so that it counts as a leaf; one of the original network is none.

    Attributes:
        channels: of what it sees.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns `inputs` (any shape) with zeros in place of what is negative."""
        return torch.relu(inputs)


def rectified(covariance: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns covariance and mean of normal variables behind a ReLU, and its gain for each of them, `(n,)`.

    The gain is what the covariance with anything else that is normal is multiplied by: the share that is not cut
    (Stein, Estimation of the Mean of a Multivariate Normal Distribution, 1981, lemma 2). Means and variances are exact;
    covariances are so to the first order of the correlation, and where there is none.

    Args:
        covariance: `(n, n)` before it.
        mean: `(n,)` before it.
    """
    deviation = covariance.diagonal().clamp(min=0).sqrt()
    away = (mean / deviation.clamp(min=torch.finfo(mean.dtype).tiny)).nan_to_num().clamp(-FARTHEST, FARTHEST)
    kept, cut = torch.special.ndtr(away), torch.special.ndtr(-away)
    density = (-0.5 * away.square()).exp() / math.sqrt(2 * math.pi)
    # E relu(z)^2 - (E relu(z))^2 for z of this mean and of unit variance, without the difference of large numbers.
    spread = away.square() * kept * cut + kept + away * density * (cut - kept) - density.square()
    found = kept[:, None] * covariance * kept
    found.diagonal().copy_(deviation.square() * spread.clamp(min=0))
    return found, mean * kept + deviation * density, kept
