"""How far estimated drops are off, as assumed in training and wherever a plan is judged before it is scored."""

import numpy as np
from numpy.typing import NDArray

from plywise.env.score.score import Array

NETWORK, LAYER = 0.3, 0.4
"""Spreads of what the estimates are off by, the same for a whole network and for each layer."""

COUNTING = 0.5
"""Spread in points of a drop of one point: lost images are counted, 4 of 400 for a point, give or take 2."""

LAYERS_TOGETHER = 4
"""Layers that make up the drop of a plan for the most part: their errors cancel in part."""


def spread_of(drop: NDArray[np.floating]) -> Array:
    """Returns the spread of what will be seen of estimated drops, points, of any shape."""
    estimate = NETWORK**2 + LAYER**2 / LAYERS_TOGETHER
    spread: Array = np.sqrt(estimate * drop * drop + COUNTING**2 * np.maximum(drop, 0.0))
    return spread
