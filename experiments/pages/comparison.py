"""Hand-over folders side by side: what each was asked and reached, and where their recipes differ."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.experiments.pages.report_file import read_report
from plywise.experiments.pages.wording import UNKNOWN, count, metric_value, number, percent, share

Report = Mapping[str, Any]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
USED = ("model", "data", "method", "seed", "device", "metric", "demand", "demand_met", "violations", "demand_latency")
"""What every report must hold to be compared."""
BLOCKS = ("original", "compressed")
NOISE = "latencies were timed in runs of their own: what differs by less than the quartiles is noise"

ABSENT = "not in this network"


@dataclass(frozen=True)
class Run:
    """A hand-over folder.

    Attributes:
        letter: that stands for it in tables.
        folder: as it was given.
        report: what it holds.
    """

    letter: str
    folder: Path
    report: Report


@dataclass(frozen=True)
class Row:
    """One figure of all runs.

    Attributes:
        name: with its unit.
        values: as text.
        best: places of the best; empty where all are alike, or where no value is better than another.
    """

    name: str
    values: tuple[str, ...]
    best: tuple[int, ...] = ()


@dataclass(frozen=True)
class LayerRow:
    """The recipes of one layer.

    Attributes:
        layer: its name.
        recipes: in each run; `ABSENT` where the network has no such layer.
    """

    layer: str
    recipes: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether not all runs have the same."""
        return len(set(self.recipes)) > 1

    def by_recipe(self, runs: Sequence[Run]) -> list[tuple[str, str]]:
        """Returns letters of runs and the recipe that they share."""
        found: dict[str, list[str]] = {}
        for run, recipe in zip(runs, self.recipes, strict=True):
            found.setdefault(recipe, []).append(run.letter)
        return [(" ".join(letters), recipe) for recipe, letters in found.items()]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads the reports of hand-over folders.

    Raises:
        ConfigurationError: for fewer than two or too many folders.
        FileFormatError: where one is no hand-over, or of a version that did not write what is needed.
    """
    if not 2 <= len(folders) <= len(LETTERS):
        raise ConfigurationError(
            f"compare was given {len(folders)} folder{'s' * (len(folders) != 1)} and takes 2 to {len(LETTERS)} that "
            "'compress' wrote: plywise compare RUN RUN"
        )
    return [Run(letter, folder, _read(folder)) for letter, folder in zip(LETTERS, folders, strict=False)]


def _read(folder: Path) -> Report:
    report = read_report(folder)
    missing = [name for name in (*USED, *BLOCKS, "layers") if name not in report]
    if missing:
        raise FileFormatError(
            f"{folder / 'report.json'} lacks {', '.join(missing)}: it is damaged or of an older version; compress again"
        )
    return report


def notes(runs: Sequence[Run]) -> list[str]:
    """Returns what keeps figures from being compared as they are."""
    found = []
    for what, key in (("networks", "model"), ("data", "data")):
        if len({run.report[key] for run in runs}) > 1:
            found.append(f"different {what}: {', '.join(f'{run.letter} {run.report[key]}' for run in runs)}")
    if len({run.report["metric"]["name"] for run in runs}) > 1:
        found.append("different metrics: their values do not compare")
    if len({json.dumps(run.report["original"]["storage_bytes"]) for run in runs}) > 1:
        found.append("the originals differ in size: shares do not compare")
    if len({run.report["device"]["fingerprint"] for run in runs}) > 1:
        names = ", ".join(f"{run.letter} {run.report['device']['name']}" for run in runs)
        found.append(f"different devices: {names}")
    return [*found, NOISE]


def figures(runs: Sequence[Run]) -> list[Row]:
    """Returns what the compressed networks are, the best of each marked."""
    rows = [Row("demand", tuple("met" if run.report["demand_met"] else "NOT met" for run in runs))]
    same = len({run.report["metric"]["name"] for run in runs}) == 1
    metric = str(runs[0].report["metric"]["name"]) if same else "metric"
    values = [run.report["compressed"]["accuracy"] for run in runs]
    shown = tuple(metric_value(run.report, value) for run, value in zip(runs, values, strict=True))
    rows.append(Row(metric, shown, _best(values, high=True) if same else ()))
    drops = [_drop(run.report) for run in runs]
    rows.append(Row("drop, points", tuple(number(value, 3) for value in drops), _best(drops)))
    for name, key, form in (
        ("weights.safetensors, bytes", "storage_bytes", count),
        ("model.onnx, bytes", "onnx_bytes", count),
        ("model.onnx.xz, bytes", "onnx_xz_bytes", count),
        ("latency on the device, ms", "device_latency_ms", number),
        ("latency, ms", "latency_ms", number),
        ("energy, mJ", "energy_mj", number),
        ("MACs", "macs", count),
        ("parameters", "parameters", count),
    ):
        costs = [run.report["compressed"].get(key) for run in runs]
        if any(cost is not None for cost in costs):
            rows.append(Row(name, tuple(map(form, costs)), _best(costs)))
    shares: tuple[tuple[str, str | None], ...] = (
        ("storage", "storage_bytes"),
        ("latency", None),
        ("energy", "energy_mj"),
    )
    for name, of in shares:
        parts = [_share(run.report, of) for run in runs]
        rows.append(Row(f"{name}, of the original", tuple(map(percent, parts)), _best(parts)))
    return rows


def demands(runs: Sequence[Run]) -> list[Row]:
    """Returns what was asked of each run."""
    rows = []
    for name, key, form in (
        ("drop at most, points", "max_accuracy_drop", number),
        ("storage at most", "max_storage", percent),
        ("latency at most", "max_latency", percent),
        ("energy at most", "max_energy", percent),
    ):
        asked = [run.report["demand"].get(key) for run in runs]
        if any(ceiling is not None for ceiling in asked):
            rows.append(Row(name, tuple("no ceiling" if each is None else form(each) for each in asked)))
    broken = tuple(", ".join(run.report["violations"]) or UNKNOWN for run in runs)
    if any(run.report["violations"] for run in runs):
        rows.append(Row("ceilings broken", broken))
    return rows


def layers(runs: Sequence[Run], changes: bool = False) -> list[LayerRow]:
    """Returns the recipes of all layers, in the order of the networks.

    Args:
        runs: to compare.
        changes: leave out layers that have the same recipe in all runs.
    """
    recipes = [{row["name"]: row["recipe"] for row in run.report["layers"]} for run in runs]
    names = dict.fromkeys(name for each in recipes for name in each)
    rows = [LayerRow(name, tuple(each.get(name, ABSENT) for each in recipes)) for name in names]
    return [row for row in rows if row.differs or not changes]


def as_json(runs: Sequence[Run], changes: bool = False) -> dict[str, Any]:
    """Returns the comparison as JSON values."""
    told = (*USED, *BLOCKS)
    return {
        "runs": [
            {"letter": run.letter, "folder": str(run.folder)} | {name: run.report[name] for name in told}
            for run in runs
        ],
        "layers": [
            {"name": row.layer, "recipes": list(row.recipes), "differs": row.differs} for row in layers(runs, changes)
        ],
        "notes": notes(runs),
    }


def drop_and_shares(run: Run) -> tuple[float | None, float | None, float | None]:
    """Returns what a run loses, points, and its storage and latency as shares of its original's."""
    return _drop(run.report), _share(run.report, "storage_bytes"), _share(run.report, None)


def _drop(report: Report) -> float | None:
    before, after = report["original"]["accuracy"], report["compressed"]["accuracy"]
    return None if before is None or after is None else (before - after) / report["metric"]["point"]


def _share(report: Report, key: str | None) -> float | None:
    """Returns a cost as a share of the original's: the latency that the demand is judged by where no key is given."""
    key = key or str(report["demand_latency"])
    return share(report["compressed"].get(key), report["original"].get(key))


def _best(values: Sequence[float | None], high: bool = False) -> tuple[int, ...]:
    known = [value for value in values if value is not None]
    if len(set(known)) < 2:
        return ()
    best = max(known) if high else min(known)
    return tuple(place for place, value in enumerate(values) if value == best)
