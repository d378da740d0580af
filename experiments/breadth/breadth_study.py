"""Which networks of other people are compressed, how much of them, and what is left alone?

`python -m plywise.experiments.breadth.breadth_study [NAME ...]` writes `experiments/results/breadth_study.md`. It needs
torchvision, timm and transformers: `pip install --constraint constraints.txt -e '.[breadth]'`. Each network runs in a
process of its own; rows that an earlier run with the same code has found are kept.
"""

import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from typing import Any

from rich.console import Console

from plywise.env.execution.progress import tracked
from plywise.env.storage.cache import cache_folder
from plywise.experiments.breadth.architectures import ARCHITECTURES
from plywise.experiments.breadth.breadth_row import ITEMS, PATIENCE, row_of
from plywise.experiments.workbench.kept_runs import kept_run
from plywise.experiments.workbench.results_page import Page

SECONDS = 900
"""That a network may take, at most."""

ROW = "--row"

HEADINGS = (
    *("network", "from", "parameters", "reached", "cut", "Torch-Pruning", "bytes", "ONNX", "seconds", "GiB"),
    "problem",
)


def main(*names: str) -> None:
    """Studies all networks, or those of some names, and writes the page."""
    started = time.perf_counter()
    folder = cache_folder("breadth")
    asked = list(names or ARCHITECTURES)
    rows = {
        name: kept_run(folder, ["breadth", name], lambda _: alone(name))  # noqa: B023
        for name in tracked(asked, "architectures", len(asked))
    }
    page = Page("breadth_study", "python -m plywise.experiments.breadth.breadth_study", time.perf_counter() - started)
    write(page, rows)
    page.write(Console())


def alone(name: str) -> dict[str, Any]:
    """Returns the row of an architecture from a process of its own."""
    command = [sys.executable, "-m", "plywise.experiments.breadth.breadth_study", ROW, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"problem": f"not done after {SECONDS} s"}
    if done.returncode:
        return {"problem": f"the process ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def write(page: Page, rows: dict[str, dict[str, Any]]) -> None:
    """Puts rows on a page."""
    whole = [row for row in rows.values() if row.get("parameters")]
    passed = sum(not row["problem"] for row in rows.values())
    page.text(
        f"{passed} of {len(rows)} networks pass: a mixed plan (all kinds of techniques) is applied, packed, loaded "
        "again with equal outputs, exported, and ONNX Runtime gives the same outputs. Techniques reach "
        f"{statistics.fmean(row['reached'] for row in whole):.1%} of the parameters in the mean, channel cuts "
        f"{statistics.fmean(row['cut'] for row in whole):.1%}. Random weights, small inputs, {ITEMS} items."
    )
    page.table(
        (
            "network",
            "from",
            "parameters",
            "reached",
            "cut",
            "Torch-Pruning",
            "bytes",
            "ONNX",
            "seconds",
            "GiB",
            "problem",
        ),
        [_cells(name, row) for name, row in rows.items()],
    )
    reasons: Counter[str] = Counter()
    for row in whole:
        reasons.update(row["skipped"])
    page.text("Layers that are left as they are, over all networks:")
    page.table(("reason", "layers"), [(reason, str(count)) for reason, count in reasons.most_common()])
    page.text(
        "Reached: share of the parameters in layers that some technique can take. Cut: share in layers of which "
        "channel cuts reach one side at least; Torch-Pruning: the same for the groups that it finds, where it builds "
        f"its graph within {PATIENCE} s. Bytes: of the packed file over the original's. ONNX: root mean square that "
        "ONNX Runtime differs by, relative to the outputs. Seconds: to study and to compress, on one process."
    )


def _cells(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    source = ARCHITECTURES[name].source if name in ARCHITECTURES else ""
    if not row.get("parameters"):
        return (name, source, *[""] * 8, row["problem"])
    others = "fails" if row["others_cut"] is None else f"{row['others_cut']:.2f}"
    figures = (f"{row['parameters']:,}", f"{row['reached']:.3f}", f"{row['cut']:.2f}", others)
    costs = (f"{row['share']:.3f}", f"{row['difference']:.1e}", f"{row['seconds']:.0f}", f"{row['gigabytes']:.1f}")
    return (name, source, *figures, *costs, row["problem"])


if __name__ == "__main__":
    if sys.argv[1:2] == [ROW]:
        print(json.dumps(row_of(ARCHITECTURES[sys.argv[2]], sys.argv[2])))
    else:
        main(*sys.argv[1:])
