"""Which networks of other people are compressed, how much of them, and what is left alone?

`python -m plywise.experiments.breadth.breadth_study [NAME ...]` writes `experiments/results/breadth_study.md`. It needs
torchvision, timm and transformers: `pip install --constraint constraints.txt -e '.[breadth]'`. Each network runs in a
process of its own; rows that an earlier run with the same code has found are kept.
"""

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from typing import Any

import torch
from rich.console import Console

from plywise.compressors.errors import WorkerError
from plywise.env.execution.progress import tracked
from plywise.env.storage.cache import cache_folder
from plywise.env.storage.code_digest import code_digest
from plywise.experiments.breadth import breadth_row
from plywise.experiments.breadth.architectures import ARCHITECTURES
from plywise.experiments.breadth.breadth_row import CLOSE, ITEMS, PATIENCE, row_of
from plywise.experiments.workbench.kept_runs import kept_run
from plywise.experiments.workbench.results_page import Page

SECONDS = 900
"""That a network may take, at most."""

ROW = "--row"

PACKAGES = ("torchvision", "timm", "transformers")

LEAST_REACHED = 0.95
"""Share of the parameters that techniques shall reach in the mean."""

HEADINGS = (
    *("network", "from", "parameters", "reached", "cut", "Torch-Pruning", "bytes", "ONNX", "seconds", "GiB"),
    "problem",
)


def main(*names: str) -> None:
    """Studies all networks, or those of some names, and writes the page."""
    started = time.perf_counter()
    asked = list(names or ARCHITECTURES)
    rows = {name: row(name) for name in tracked(asked, "architectures", len(asked))}
    page = Page("breadth_study", "python -m plywise.experiments.breadth.breadth_study", time.perf_counter() - started)
    write(page, rows)
    page.write(Console())


def row(name: str) -> dict[str, Any]:
    """Returns the row of an architecture: kept from an earlier run with the same code and packages, or found now."""
    asked = [code_digest(breadth_row.__name__), versions(), name]
    try:
        return kept_run(cache_folder("breadth"), asked, lambda _: alone(name))
    except WorkerError as error:  # of a busy machine, perhaps: the next run tries again
        return {"problem": str(error)}


def versions() -> dict[str, str]:
    """Returns the versions of the packages that architectures come from, of those that are installed."""
    found = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def alone(name: str) -> dict[str, Any]:
    """Returns the row of an architecture from a process of its own.

    Raises:
        WorkerError: where the process does not come to an end, or to a bad one.
    """
    command = [sys.executable, "-m", "plywise.experiments.breadth.breadth_study", ROW, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise WorkerError(f"not done after {SECONDS} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise WorkerError(f"the process ended with {done.returncode}: {last[:150]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def write(page: Page, rows: Mapping[str, dict[str, Any]]) -> None:
    """Puts rows on a page."""
    studied = {name: row for name, row in rows.items() if row.get("reached")}
    passed = sum(not row["problem"] for row in rows.values())
    page.text(
        f"{passed} of {len(rows)} networks pass: a mixed plan is applied, packed, loaded again with equal outputs, "
        f"exported, and ONNX Runtime gives nearly the same. {_means(studied)}Random weights, small inputs, batches of "
        f"{ITEMS}, one thread, a process each; {', '.join(f'{name} {each}' for name, each in versions().items())}."
    )
    page.table(HEADINGS, [_cells(name, row) for name, row in rows.items()])
    page.text(
        "Reached: share of the parameters in layers that some technique can take. Cut: share in layers of which "
        "channel cuts reach one side at least, each cut tried; Torch-Pruning: the same for the groups that it finds, "
        f"not tried, where it finds them within {PATIENCE} s. Bytes: of the packed file over the original's. ONNX: "
        f"root mean square by which ONNX Runtime differs, over the outputs' deviation, at most {CLOSE}. Seconds: of "
        "the processor, to study and to compress. GiB: at most, libraries included."
    )
    page.text("What plans hold: layers that take each technique.")
    kinds = sorted({kind for row in studied.values() for kind in row["chosen"]})
    page.table(
        ("network", *kinds),
        [(name, *(str(row["chosen"].get(kind, "")) for kind in kinds)) for name, row in studied.items()],
    )
    page.text("Modules with weights that are left as they are:")
    page.table(("network", "modules", "reason"), list(_reasons(studied, "skipped")))
    page.text("Layers whose output channels cannot be cut, their outputs being those of the network apart:")
    page.table(("network", "layers", "reason"), list(_reasons(studied, "uncut")))


def _means(studied: Mapping[str, dict[str, Any]]) -> str:
    if not studied:
        return ""
    reached, cut = (statistics.fmean(row[share] for row in studied.values()) for share in ("reached", "cut"))
    met = "at least" if reached >= LEAST_REACHED else "less than"
    return (
        f"Techniques reach {reached:.1%} of the parameters in the mean, {met} the {LEAST_REACHED:.0%} asked for, and "
        f"channel cuts {cut:.1%}. "
    )


def _reasons(studied: Mapping[str, dict[str, Any]], kind: str) -> Iterator[tuple[str, str, str]]:
    for name, row in studied.items():
        for reason, count in row[kind].items():
            if reason != "its channels are the network's outputs":
                yield name, str(count), reason


def _cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    source = ARCHITECTURES[name].source if name in ARCHITECTURES else ""
    if not row.get("reached"):
        return (name, source, *[""] * 8, row["problem"])
    others = "fails" if row["others_cut"] is None else f"{row['others_cut']:.2f}"
    figures = (f"{row['parameters']:,}", f"{row['reached']:.3f}", f"{row['cut']:.2f}", others)
    share, difference = _number(row["share"], ".3f"), _number(row["difference"], ".1e")
    return (
        name,
        source,
        *figures,
        share,
        difference,
        f"{row['seconds']:.0f}",
        f"{row['gigabytes']:.1f}",
        row["problem"],
    )


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"


if __name__ == "__main__":
    if sys.argv[1:2] == [ROW]:
        torch.set_num_threads(1)
        print(json.dumps(row_of(ARCHITECTURES[sys.argv[2]], sys.argv[2])))
    else:
        main(*sys.argv[1:])
