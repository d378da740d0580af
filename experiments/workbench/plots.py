"""Pictures of the studies' pages: files that are the same for the same figures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "plywise",
}
COLUMNS = 5
PANEL = 2.4
"""Panels in a row at most, and the side of each, inches."""


class Points(NamedTuple):
    """Points of one panel.

    Attributes:
        x, y: `(n,)`.
        reach: `(n,)` half the length of a bar through each point, up and down; None for none.
        label: what they are, where a panel has several.
    """

    x: Sequence[float] | NDArray[Any]
    y: Sequence[float] | NDArray[Any]
    reach: Sequence[float] | NDArray[Any] | None = None
    label: str = ""


def against(panels: Mapping[str, Sequence[Points]], across: str, up: str, equal: bool = False) -> Figure:
    """Draws one figure against another, a panel for each network.

    Args:
        panels: by title, groups of points.
        across, up: what the axes are, with their units.
        equal: draw the line on which both figures are the same.
    """
    with mpl.rc_context(STYLE):
        figure, every = _panels(len(panels))
        for axes, (title, groups) in zip(every, panels.items(), strict=True):
            for group in groups:
                style: dict[str, Any] = {"fmt": "o", "markersize": 2.5, "elinewidth": 0.6, "alpha": 0.7}
                axes.errorbar(group.x, group.y, group.reach, label=group.label, **style)
            if equal:
                both = np.concatenate([np.r_[group.x, group.y] for group in groups])
                axes.plot(*[[both.min(), both.max()]] * 2, color="0.6", linewidth=0.8, zorder=0)
            axes.set_title(title)
        figure.supxlabel(across, fontsize=9)
        figure.supylabel(up, fontsize=9)
        marks, labels = every[0].get_legend_handles_labels()
        if any(labels):
            figure.legend(marks, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def growth(panels: Mapping[str, Points], up: str) -> Figure:
    """Draws what grows with what, both on logarithmic axes, with the power that was fitted.

    Args:
        panels: by what is along the axis; `label` is the title.
        up: what grows, with its unit.
    """
    with mpl.rc_context(STYLE):
        figure, every = _panels(len(panels))
        for axes, (across, points) in zip(every, panels.items(), strict=True):
            power, factor = fitted_power(points.x, points.y)
            axes.loglog(points.x, factor * np.asarray(points.x, float) ** power, color="0.6", linewidth=0.8)
            axes.loglog(points.x, points.y, "o", markersize=3.5)
            axes.set_title(f"{points.label}: power {power:.2f}")
            axes.set_xlabel(across)
            axes.minorticks_off()
            axes.set_xticks(points.x, [f"{each:,}" for each in points.x], rotation=45)
            axes.set_yticks(points.y, [f"{each:.2g}" for each in points.y])
        every[0].set_ylabel(up)
    return figure


def fitted_power(x: Sequence[float] | NDArray[Any], y: Sequence[float] | NDArray[Any]) -> tuple[float, float]:
    """Returns the power of x that y grows with, and the factor before it, by least squares of the logarithms."""
    power, start = np.polyfit(np.log(x), np.log(y), 1)
    return float(power), math.exp(start)


def save(figure: Figure, path: Path) -> None:
    """Writes a picture as SVG."""
    with mpl.rc_context(STYLE):
        figure.savefig(path, format="svg", metadata={"Date": None})


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, COLUMNS)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(PANEL * columns + 0.4, PANEL * rows + 0.4), layout="constrained")
    every = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for empty in every[count:]:
        empty.remove()
    return figure, every[:count]
