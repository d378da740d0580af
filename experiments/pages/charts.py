"""Charts as inline SVG whose colours are the page's, so that they follow its light and dark mode and print."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, ORIGINAL, COMPRESSED, OTHER = "#010203", "#010204", "#010205", "#010206", "#010207"
"""Stand-ins that no theme uses; `_inline` puts the page's variables in their place."""
VARIABLES = {INK: "ink", MUTED: "muted", ORIGINAL: "original", COMPRESSED: "compressed", OTHER: "other"}

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # names of layers may hold dollar signs
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "plywise",
}
WIDTH = 4.6
"""Inches: what is legible on a phone, and not blown up on a wide screen."""
MOST_BARS = 40
"""Layers that are drawn, those that cost most; the table lists all."""
FAR = 10.0
"""Points of a ceiling above which it is not drawn: what was scored would be a line at the bottom."""
LONGEST = 26
"""Letters of a layer's name in a chart."""


@dataclass(frozen=True)
class Bar:
    """What one layer costs before and after."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Point:
    """A plan: its cost as a share of the original's, the points that it loses, and their spread where estimated."""

    cost: float
    drop: float
    spread: float | None = None


def paired_bars(bars: Sequence[Bar], unit: str) -> Markup:
    """Draws what layers cost before and after, in the order of the network; of many, those that cost most.

    Args:
        bars: of all layers.
        unit: of the figures.
    """
    shown = _largest(bars)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.26 * len(shown)), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(shown))
        axes.barh([place - 0.19 for place in places], [bar.before for bar in shown], 0.36, color=ORIGINAL)
        axes.barh([place + 0.19 for place in places], [bar.after for bar in shown], 0.36, color=COMPRESSED)
        axes.set_yticks(list(places), [_short(bar.name) for bar in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel(unit)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=5)
        figure.legend(["original", "compressed"], loc="outside upper center", ncols=2)
        return _inline(figure, f"Bars: {unit} of each layer, original and compressed")


def plans_against_cost(
    scored: Sequence[Point],
    stopped: Sequence[Point],
    chosen: Point | None,
    front: Sequence[Point],
    cost: str,
    ceilings: tuple[float | None, float | None],
) -> Markup:
    """Draws plans by a cost and by what they lose.

    Args:
        scored: on all samples.
        stopped: early: they lose at least that much.
        chosen: what was handed over.
        front: the best plans by estimate.
        cost: its name.
        ceilings: of the cost (a share) and of the drop (points); None for none.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        axes = figure.add_subplot()
        line = sorted(_undominated(front), key=lambda point: point.cost)
        low, high = ([p.drop + sign * (p.spread or 0.0) for p in line] for sign in (-1.0, 1.0))
        axes.fill_between([p.cost for p in line], low, high, color=MUTED, alpha=0.15, linewidth=0)
        axes.plot([p.cost for p in line], [p.drop for p in line], color=MUTED, linewidth=1, label="estimated front")
        if scored:
            best = sorted(_undominated(scored), key=lambda point: point.cost)
            axes.step([p.cost for p in best], [p.drop for p in best], where="post", color=OTHER, linewidth=1.2)
            _dots(axes, scored, OTHER, "scored exactly")
        if stopped:
            _dots(axes, stopped, OTHER, "stopped early (loses at least this)", markerfacecolor="none")
        if chosen is not None:
            _dots(axes, [chosen], COMPRESSED, "handed over", markersize=9, marker="D")
        share, drop = ceilings
        if share is not None:
            axes.axvline(share, color=INK, linewidth=1, linestyle="--", label="ceiling")
        if drop is not None:
            axes.axhline(drop, color=INK, linewidth=1, linestyle="--", label=None if share else "ceiling")
        axes.set_xlabel(f"{cost}, share of the original's")
        axes.set_ylabel("accuracy drop, points")
        _look_at([*scored, *stopped, *([chosen] if chosen else [])], ceilings, axes)
        figure.legend(loc="outside upper center", ncols=2)
        return _inline(figure, f"Plans by {cost} and accuracy drop")


def estimated_against_exact(points: Sequence[Point]) -> Markup:
    """Draws what plans were estimated to lose (`cost`, with its spread) and what they lost (`drop`), both in points."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        axes = figure.add_subplot()
        both = [value for point in points for value in (point.cost, point.drop)]
        axes.plot([min(both), max(both)], [min(both), max(both)], color=MUTED, linewidth=1, label="estimated as it was")
        estimated, exact = ([getattr(point, name) for point in points] for name in ("cost", "drop"))
        spreads = [point.spread or 0.0 for point in points]
        style: dict[str, Any] = {"color": OTHER, "markersize": 5, "elinewidth": 0.8}
        axes.errorbar(estimated, exact, xerr=spreads, fmt="o", label="plan, with one spread", **style)
        axes.set_xlabel("estimated accuracy drop, points")
        axes.set_ylabel("exact accuracy drop, points")
        figure.legend(loc="outside upper center", ncols=2)
        return _inline(figure, "Estimated and exact accuracy drop of the plans that were scored")


def named_points(points: Mapping[str, Point], cost: str) -> Markup:
    """Draws one point for each name, by a cost and what is lost.

    Args:
        points: by name.
        cost: its name.
    """
    names: dict[Point, list[str]] = {}
    for name, point in points.items():
        names.setdefault(point, []).append(name)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for point, each in names.items():
            axes.plot([point.cost], [point.drop], color=COMPRESSED, marker="o", markersize=6)
            axes.annotate(
                " ".join(each), (point.cost, point.drop), xytext=(6, 4), textcoords="offset points", color=INK
            )
        axes.margins(0.15)
        axes.set_xlabel(f"{cost}, share of the original's")
        axes.set_ylabel("drop, points")
        return _inline(figure, f"Runs by {cost} and drop")


def _dots(axes: Axes, points: Sequence[Point], color: str, label: str, **style: Any) -> None:
    shown: dict[str, Any] = {"marker": "o", "markersize": 5, "color": color, "linestyle": "none"} | style
    axes.plot([point.cost for point in points], [point.drop for point in points], label=label, **shown)


def _look_at(plans: Sequence[Point], ceilings: tuple[float | None, float | None], axes: Axes) -> None:
    """Turns to where plans and ceilings are: the front goes on to where nobody wants to be."""
    if not plans:
        return
    costs = [plan.cost for plan in plans] + [share for share in ceilings[:1] if share is not None]
    drops = [plan.drop for plan in plans] + [drop for drop in ceilings[1:] if drop is not None and drop <= FAR]
    for low, high, turn in ((min(costs), max(costs), axes.set_xlim), (min(drops), max(drops), axes.set_ylim)):
        margin = max(0.15 * (high - low), 0.02)
        turn(low - margin, high + margin)


def _undominated(points: Sequence[Point]) -> list[Point]:
    """Returns those of which no other one costs and loses less."""
    return [
        each
        for each in points
        if not any(
            other.cost <= each.cost and other.drop <= each.drop and (other.cost, other.drop) != (each.cost, each.drop)
            for other in points
        )
    ]


def _largest(bars: Sequence[Bar]) -> list[Bar]:
    """Returns those that cost most, in the order of the network."""
    ranked = sorted(bars, key=lambda bar: -max(bar.before, bar.after))[:MOST_BARS]
    kept = set(map(id, ranked))
    return [bar for bar in bars if id(bar) in kept]


def _short(name: str) -> str:
    """Returns the end of a long name: its beginning is the same in most layers."""
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"


def _inline(figure: Figure, label: str) -> Markup:
    """Returns a figure as an `svg` element without ids of groups, metadata and a size of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)
    drawn = re.sub(r"<!--.*?-->", "", drawn, flags=re.DOTALL)
    opening = re.match(r"<svg[^>]*>", drawn)
    assert opening is not None
    box = re.search(r'viewBox="[^"]*"', opening[0])
    assert box is not None
    names = 'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg"'
    head = Markup('<svg {} {} role="img" aria-label="{}">').format(Markup(names), Markup(box[0]), label)
    for color, variable in VARIABLES.items():
        drawn = drawn.replace(color, f"var(--{variable})")
    return head + Markup(drawn[opening.end() :])  # matplotlib escapes the texts that it draws
