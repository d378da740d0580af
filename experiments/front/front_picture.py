"""The picture of a front: points lost against each cost."""

import io
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from plywise.agent.search.front import unbeaten
from plywise.env.arrays import Doubles
from plywise.env.prices.prices import METRICS
from plywise.experiments.workbench.plots import STYLE

if TYPE_CHECKING:
    from plywise.experiments.front.front_folder import Row

MARKS = {"uniform": ("s", "C7"), "knapsack": ("o", "C0"), "agent": ("o", "C2"), "local change": ("o", "C1")}
"""How plans are drawn, by who proposed them."""

TICKS, NARROW = (1, 2, 3, 5), 3.0
"""Of a decade, and the largest share over the smallest up to which an axis is linear."""

SIDE = 3.2
"""Of a panel, inches."""


class Estimated(NamedTuple):
    """Plans as the price table sees them.

    Attributes:
        ratios: `(P, M)` costs as shares of the original's.
        drop: `(P,)` points.
    """

    ratios: Doubles
    drop: Doubles


def picture(rows: Sequence["Row"], front: Collection[int], max_drop: float, estimated: Estimated | None) -> bytes:
    """Returns the picture as SVG.

    Args:
        rows: all plans scored.
        front: numbers of those that no other one beats; they are written beside their marks.
        max_drop: points; what loses more is outside of the picture.
        estimated: what the price table says, drawn as a dashed line.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(SIDE * len(METRICS), SIDE + 0.5), layout="constrained")
        every = figure.subplots(1, len(METRICS), sharey=True)
        for place, (axes, metric) in enumerate(zip(every, METRICS, strict=True)):
            if estimated is not None:
                _line(axes, estimated.ratios[:, place], estimated.drop, "--", "estimated by the price table")
            _line(axes, [getattr(row, metric) for row in rows], [row.drop for row in rows], "-", "front, exact scores")
            _marks(axes, rows, metric, front, max_drop)
            shares = [getattr(row, metric) for row in rows]
            if shares and max(shares) > NARROW * min(shares):  # else few ticks of a logarithmic axis would be seen
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=TICKS))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g}"))
                axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel(f"{metric}, share of the original's")
        lowest = min([0.0, *(row.drop for row in rows)])
        every[0].set_ylim(max_drop * 1.05, lowest - 0.05 * max_drop)  # less lost is higher
        every[0].set_ylabel("points lost")
        marks, labels = every[0].get_legend_handles_labels()
        figure.legend(marks, labels, loc="outside upper center", ncols=3, frameon=False)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def _line(axes: Axes, cost: Any, drop: Any, style: str, label: str) -> None:
    """Draws the least cost for every number of points lost, as steps."""
    points = np.column_stack([cost, drop])
    kept = points[unbeaten(points.tolist())] if len(points) else points.reshape(0, 2)
    kept = kept[kept[:, 1].argsort()]
    axes.step(kept[:, 0], kept[:, 1], style, where="pre", color="0.6", linewidth=0.9, label=label, zorder=0)


def _marks(axes: Axes, rows: Sequence["Row"], metric: str, front: Collection[int], max_drop: float) -> None:
    for source, (mark, color) in MARKS.items():
        some = [row for row in rows if row.found_by == source]
        if some:
            places = [getattr(row, metric) for row in some], [row.drop for row in some]
            axes.plot(*places, mark, color=color, markersize=3.5, alpha=0.8, label=source)
    for row in rows:
        if row.number in front and row.drop <= max_drop:
            place = (getattr(row, metric), row.drop)
            axes.annotate(str(row.number), place, xytext=(2, 2), textcoords="offset points", fontsize=5, color="0.3")
