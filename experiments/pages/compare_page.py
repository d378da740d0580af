"""The page of several hand-over folders side by side."""

from collections.abc import Sequence
from pathlib import Path

from plywise.compressors.atomic_file import write_atomically
from plywise.experiments.pages import comparison
from plywise.experiments.pages.charts import Point, named_points
from plywise.experiments.pages.comparison import Run, drop_and_shares
from plywise.experiments.pages.rendering import rendered


def write_compare_page(runs: Sequence[Run], path: Path, changes: bool = False) -> None:
    """Writes the page, atomically.

    Args:
        runs: to compare.
        path: of the file.
        changes: leave out layers that have the same recipe in all runs.
    """
    write_atomically(path, compare_page(runs, changes).encode())


def compare_page(runs: Sequence[Run], changes: bool = False) -> str:
    """Returns the page; arguments as in `write_compare_page`."""
    found = {run.letter: drop_and_shares(run) for run in runs}
    charts = []
    for place, cost in ((1, "storage"), (2, "latency")):
        points = {letter: (each[place], each[0]) for letter, each in found.items()}
        known = {
            letter: Point(share, drop)
            for letter, (share, drop) in points.items()
            if share is not None and drop is not None
        }
        if known:
            charts.append(named_points(known, cost))
    return rendered(
        "compare.html",
        runs=runs,
        figures=comparison.figures(runs),
        demands=comparison.demands(runs),
        layers=comparison.layers(runs, changes),
        notes=comparison.notes(runs),
        changes=changes,
        charts=charts,
    )
