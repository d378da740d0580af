"""What layers cost in their place: calibrated on complete graphs, for a runtime fuses and converts between layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Floats = NDArray[np.float64]

NOISE = 0.05
"""Relative error of a measured graph, about."""

SPREAD = 0.3
"""How far the factor of a layer lies from that of all layers, about, as a share of it."""

BORDER_MS = 2e-6
"""The least by which the milliseconds of a number that changes form vary from layer to layer."""


@dataclass(frozen=True)
class Overhead:
    """Turns the latencies of single layers into that of the network.

    Attributes:
        factors: `(layers, 2)` of a layer alone: one where it computes on floats, one where on integers.
        borders: `(layers,)` milliseconds of each number that a layer reads in another form than it is made in.
        fixed: milliseconds of what is no layer.
    """

    factors: Floats
    borders: Floats
    fixed: float

    @classmethod
    def none(cls, layers: int) -> "Overhead":
        """Returns that of a device whose layers add up to the network."""
        return cls(np.ones((layers, 2)), np.zeros(layers), 0.0)

    @classmethod
    def fitted(cls, alone: Floats, crossed: Floats, whole: Floats) -> "Overhead":
        """Fits complete graphs: first one number of each kind for all layers, then one for each layer close to it.

        Args:
            alone: `(graphs, layers, 2)` milliseconds of each layer alone, in the column of its form, else 0.
            crossed: `(graphs, layers)` numbers that each layer reads in another form than they are made in.
            whole: `(graphs,)` milliseconds of the graphs.
        """
        graphs, layers = crossed.shape
        ones = np.ones(graphs)
        sums = np.stack([alone.sum((1, 2)), crossed.sum(1), ones], 1)
        factor, border, fixed = nnls(sums / whole[:, None], ones)[0]
        start = np.concatenate([np.full(2 * layers, factor), np.full(layers, border), [fixed]])
        least = max(border, BORDER_MS)
        spread = np.concatenate([np.full(2 * layers, SPREAD * factor), np.full(layers, least), [0.1 * whole.mean()]])
        parts = np.concatenate([alone.reshape(graphs, -1), crossed, ones[:, None]], 1)
        # The most likely numbers where errors and spreads are normal (ridge regression in units of the spreads).
        scaled = parts * spread / (NOISE * whole[:, None])
        rest = (whole - parts @ start) / (NOISE * whole)
        kernel = scaled @ scaled.T + np.eye(graphs)
        found = np.maximum(start + spread * (scaled.T @ np.linalg.solve(kernel, rest)), 0.0)
        return cls(found[: 2 * layers].reshape(layers, 2), found[2 * layers : -1], float(found[-1]))

    def milliseconds(self, alone: Floats, crossed: Floats) -> Floats:
        """Returns the latencies of networks, `(graphs,)`; arguments as those of `fitted`."""
        found: Floats = (alone * self.factors).sum((-1, -2)) + crossed @ self.borders + self.fixed
        return found

    def settings(self) -> dict[str, Any]:
        """Returns plain JSON."""
        return {"factors": self.factors.tolist(), "borders": self.borders.tolist(), "fixed": self.fixed}

    @classmethod
    def restore(cls, settings: Mapping[str, Any]) -> "Overhead":
        """Returns what `settings` was taken from."""
        return cls(np.array(settings["factors"]), np.array(settings["borders"]), float(settings["fixed"]))
