"""Does it work on any kind of network? Each network with a task of its own, compressed by its own metric.

`python -m plywise.experiments.studies.family_study` writes `experiments/results/family_study.md`. Each network is
compressed by the knapsack and by an agent that has never seen a network of its family. The page is written anew after
each run, and an interrupted study goes on where it stopped.
"""

import itertools
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from plywise.agent.learning.ppo import PPOSettings
from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.agent.search.knapsack import Knapsack
from plywise.compressors.errors import ConfigurationError
from plywise.env.score.demand import Demand
from plywise.env.storage.code_digest import code_digest
from plywise.experiments.commands.compression_settings import CompressionSettings, SearchSettings, SourceSettings
from plywise.experiments.compress_model import Report, compress_model
from plywise.experiments.networks.zoo import TRAINED_HERE, ZOO
from plywise.experiments.train_agent import train_agent
from plywise.experiments.workbench.kept_runs import kept_run
from plywise.experiments.workbench.results_page import Page

NETWORKS = tuple(name for name, entry in ZOO.items() if entry.make_task is not None)
DEMAND = Demand(max_accuracy_drop=1.0, max_storage=0.15)
SEEDS = (0, 1, 2)
SETTINGS = PPOSettings(total_steps=110_000, num_envs=128)
"""As many steps as the demo's agent takes."""

KNAPSACK, AGENT = Knapsack.name, "agent"
CODE = ("plywise.agent.search", "plywise.experiments.families", "plywise.experiments.handover")
"""What decides the figures besides what `kept_run` knows of."""


HEADINGS = (
    *("network", "found by", "metric", "original", "compressed", "points lost", "on validation"),
    *("share of bytes", "share of latency", "equal", "demand met"),
)
FIGURES = {"compressed": ".4g", "drop": ".2f", "validation_drop": ".2f", "storage": ".3f", "latency": ".2f"}
"""How the columns between the original and the counts are written."""


class Compressed(NamedTuple):
    """What one run gave, of the files and on the test items.

    Attributes:
        original, compressed: the metric, in its unit.
        drop: points that were lost; negative where some were won.
        validation_drop: the same on the validation items, by which the plan was chosen.
        storage, latency: shares of the original's.
        equal: whether all checks of the hand-over passed.
        met: whether the demand is met.
        refused: why there is no plan; empty where there is one, and all figures but this are 0 where there is none.
    """

    original: float = 0.0
    compressed: float = 0.0
    drop: float = 0.0
    validation_drop: float = 0.0
    storage: float = 0.0
    latency: float = 0.0
    equal: bool = False
    met: bool = False
    refused: str = ""


Rows = dict[tuple[str, str, int], Compressed]
"""By network, method and seed."""


def main(
    folder: Path = Path("runs/family_study"),
    networks: Iterable[str] = NETWORKS,
    seeds: Iterable[int] = SEEDS,
    settings: PPOSettings = SETTINGS,
) -> None:
    """Compresses network after network, seed after seed, and writes the page anew after each run.

    Args:
        folder: of what an interrupted study has found.
        networks: names of the zoo, each with a task of its own.
        seeds: of search and of the agents' training.
        settings: of the agents' training, but for the seed.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    rows: Rows = {}
    for seed, method, name in itertools.product(seeds, (KNAPSACK, AGENT), networks):
        agent = None if method == KNAPSACK else held_out_agent(name, replace(settings, seed=seed), folder / "agents")
        rows[name, method, seed] = compressed(name, agent, seed, folder)
        page = Page("family_study", "python -m plywise.experiments.studies.family_study", time.perf_counter() - started)
        _explain(page, settings)
        _tables(page, rows)
        page.write(Console())


def held_out_agent(name: str, settings: PPOSettings, folder: Path) -> Path:
    """Returns the folder of an agent that has seen all networks that are trained on the spot, but none of a family.

    Args:
        name: a network of the family.
        settings: how to train.
        folder: of all agents.
    """
    family = ZOO[name].family
    own = [other for other in TRAINED_HERE if ZOO[other].family == family]
    out = folder / f"{family}-{settings.seed}-{settings.total_steps}"
    train_agent(TRAINED_HERE, own, out=out, settings=settings)
    return out / "agent"


def compressed(name: str, agent: Path | None, seed: int, folder: Path) -> Compressed:
    """Returns what a compression gives; an earlier one that was asked for the same with the same code is kept.

    Args:
        name: of the network.
        agent: folder of the agent that looks for the plan, the knapsack where None.
        seed: of every random choice.
        folder: of figures and hand-over folders.
    """
    searcher = KNAPSACK if agent is None else RecipeAgent.load(agent).weights_hash
    asked = [name, searcher, seed, DEMAND.ceilings, DEMAND.max_accuracy_drop, code_digest(*CODE)]

    def run(_: Path) -> dict[str, Any]:
        search = SearchSettings(agent=agent, method=KNAPSACK if agent is None else None, seed=seed)
        out = folder / "compressed" / f"{name}-{KNAPSACK if agent is None else AGENT}-{seed}"
        try:
            report = compress_model(CompressionSettings(SourceSettings(f"zoo:{name}"), search, DEMAND), out)
        except ConfigurationError as error:  # no plan can hold the ceilings
            return Compressed(refused=str(error))._asdict()
        return row_of(report)._asdict()

    return Compressed(**kept_run(folder, asked, run))


def row_of(report: Report) -> Compressed:
    """Returns the figures of a report."""
    before, after, seen = report["original"], report["compressed"], report["validation"]
    point = report["metric"]["point"]
    return Compressed(
        original=before["accuracy"],
        compressed=after["accuracy"],
        drop=(before["accuracy"] - after["accuracy"]) / point,
        validation_drop=(seen["original_accuracy"] - seen["compressed_accuracy"]) / point,
        storage=after["storage_bytes"] / before["storage_bytes"],
        latency=after["latency_ms"] / before["latency_ms"],
        equal=all(check["passed"] for check in report["checks"]),
        met=report["demand_met"],
    )


def _explain(page: Page, settings: PPOSettings) -> None:
    page.text(
        f"Demand: at most {DEMAND.max_storage:.2f} of the bytes and a drop of {DEMAND.max_accuracy_drop:g} point. A "
        "point is a percent of accuracy, mean IoU or average precision, and a hundredth of the original's value of any "
        "other metric. All figures are of the files that were handed over and on the test items, which no search has "
        "seen, and the demand is judged by them; only where it says so they are on the validation items, by which the "
        "plan was chosen. Mean of the seeds ± their standard deviation; a seed is "
        "that of calibration and search, and of the agent's training; the original is the same in all. Agent: "
        f"{settings.total_steps:,} steps on all networks that are trained on the spot but those of the network's "
        "family. Equal: how often all checks passed that the files give what was searched for: outputs of the packed "
        "weights once loaded, and the metric in ONNX Runtime. Latencies: of ONNX Runtime on this machine, one thread."
    )


def _tables(page: Page, rows: Rows) -> None:
    lines: list[tuple[str, ...]] = []
    refused: dict[str, str] = {}
    for name, method in dict.fromkeys((name, method) for name, method, _ in rows):
        runs = [row for (*which, _), row in rows.items() if which == [name, method]]
        found = [run for run in runs if not run.refused]
        refused |= {f"{name}, {method}": run.refused for run in runs if run.refused}
        metric = ZOO[name].metric
        if not found:
            lines.append((name, method, metric, *["refused"] * 6, f"0 of {len(runs)}", f"0 of {len(runs)}"))
            continue
        figures = (_spread([getattr(run, key) for run in found], kind) for key, kind in FIGURES.items())
        counts = (f"{sum(getattr(run, key) for run in found)} of {len(runs)}" for key in ("equal", "met"))
        lines.append((name, method, metric, f"{found[0].original:.4g}", *figures, *counts))
    page.table(HEADINGS, sorted(lines, key=lambda line: NETWORKS.index(line[0])))
    met, equal = (sum(getattr(run, key) for run in rows.values()) for key in ("met", "equal"))
    page.text(f"**Demands met: {met} of {len(rows)}. Files equal: {equal} of {len(rows)}.**")
    for which, reason in refused.items():
        page.text(f"{which}: refused, for {reason}")


def _spread(values: list[float], kind: str) -> str:
    """Returns mean and standard deviation in words."""
    mean = format(statistics.fmean(values), kind)
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2g}"


if __name__ == "__main__":
    main()
