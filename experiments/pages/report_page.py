"""The page of one hand-over: `report.html`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from plywise.compressors.atomic_file import write_atomically
from plywise.experiments.pages import report_tables, usage, wording
from plywise.experiments.pages.charts import (
    MOST_BARS,
    Bar,
    Point,
    estimated_against_exact,
    paired_bars,
    plans_against_cost,
)
from plywise.experiments.pages.rendering import rendered

REPORT_PAGE = "report.html"

Report = Mapping[str, Any]


def write_report_page(report: Report, folder: Path) -> None:
    """Writes the page of a report next to it, atomically.

    Args:
        report: what `report.json` holds, and nothing else.
        folder: of the hand-over.
    """
    write_atomically(folder / REPORT_PAGE, report_page(report, folder).encode())


def report_page(report: Report, folder: Path) -> str:
    """Returns the page; arguments as in `write_report_page`."""
    return rendered(
        "report.html",
        report=report,
        tables=report_tables,
        verdict=wording.verdict(report),
        attainable=wording.attainable_in_words(report),
        bars=_bars(report),
        most_bars=MOST_BARS,
        plans=_plans(report),
        sure=_sure(report),
        snippets=usage.snippets(report, folder),
        contract=usage.contract(report),
    )


def _bars(report: Report) -> list[Markup]:
    """Draws bytes and milliseconds by layer."""
    rows = report_tables.layers(report)
    found = []
    for key, unit in (("storage_bytes", "bytes"), ("latency_ms", "ms")):
        costs = [(row["name"], row["costs"]["before"][key], row["costs"]["after"][key]) for row in rows]
        known = [Bar(*each) for each in costs if None not in each]
        if known:
            found.append(paired_bars(known, unit))
    return found


def _plans(report: Report) -> list[Markup]:
    """Draws plans by storage and by latency."""
    demand, search = report["demand"], report["search"]
    found = []
    for cost in ("storage", "latency"):
        rows = [row for row in search["scored"] if None not in (row[cost], row["accuracy_drop"])]
        points = [(Point(row[cost], row["accuracy_drop"]), row) for row in rows]
        front = [Point(row[cost], row["accuracy_drop"], row["spread"]) for row in search["estimated_front"]]
        found.append(
            plans_against_cost(
                [point for point, row in points if row["seen"] == 1.0 and not row["chosen"]],
                [point for point, row in points if row["seen"] < 1.0],
                next((point for point, row in points if row["chosen"]), None),
                sorted(front, key=lambda point: (point.cost, point.drop)),
                cost,
                (demand[f"max_{cost}"], demand["max_accuracy_drop"]),
            )
        )
    return found


def _sure(report: Report) -> Markup | None:
    """Draws estimated against exact losses; None where nothing was estimated."""
    points = [
        Point(row["estimated"]["accuracy_drop"], row["accuracy_drop"], row["estimated"]["spread"])
        for row in report["search"]["scored"]
        if row["seen"] == 1.0 and "estimated" in row and row["accuracy_drop"] is not None
    ]
    points = [point for point in points if math.isfinite(point.cost) and math.isfinite(point.drop)]
    return estimated_against_exact(points) if points else None
