"""What a nat of divergence costs in points of accuracy on one network, learned from trial plans.

Each trial has a sum of single-layer divergences, known beforehand, and a drop that was counted. Every trial counts,
whatever it lost: leaving out those that lost too much or nothing would be a choice by the noise and bias what is
learned. Their weights follow from what is *expected* of them (quasi-likelihood: Wedderburn, Quasi-Likelihood Functions,
1974): a trial that should lose less than counting can show says little, and so does one near the room.
"""

import math

import numpy as np

from plywise.env.arrays import Doubles
from plywise.env.score.plan_drop import drop_growth, plan_drop
from plywise.env.score.uncertainty import counting_variance

USUAL = 40.0
"""Points that a nat costs where trials tell nothing."""

VARIETY = 3.0
"""Spread of its logarithm that is assumed before any trial: so wide that one trial of a point outweighs it."""

PLAN_ERROR = 0.5
"""Spread of the share by which a plan loses more or less than its divergence says."""

STEPS, LONGEST = 100, 1.0
"""Of the search for the logarithm: how many, and by how much it may change in one."""


def points_per_nat(nats: Doubles, drops: Doubles, room: float, samples: int) -> float:
    """Returns the points that a nat costs, by the model of `plan_drop`.

    Args:
        nats: `(n,)` summed divergences of the layers of each trial.
        drops: `(n,)` points that it lost; negative where it won.
        room: accuracy of the original less that of guessing, points.
        samples: that drops were counted on.
    """
    logarithm = usual = math.log(USUAL)
    for _ in range(STEPS):
        totals = math.exp(logarithm) * nats
        expected, growth = plan_drop(totals, room), totals * drop_growth(totals, room)
        variance = counting_variance(expected, samples) + np.square(PLAN_ERROR * expected)
        pull = float((growth * (drops - expected) / variance).sum()) - (logarithm - usual) / VARIETY**2
        information = float((growth * growth / variance).sum()) + 1.0 / VARIETY**2
        logarithm += min(max(pull / information, -LONGEST), LONGEST)
    return math.exp(logarithm)
