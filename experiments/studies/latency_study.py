"""How well latencies are predicted: `python -m plywise.experiments.studies.latency_study`.

Random plans over the whole range are exported for real and timed; weights are random, for time does not depend on them.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from scipy.stats import spearmanr

from plywise.compressors.recipes.plan import Plan
from plywise.env.arrays import Doubles
from plywise.env.bank.bank import Bank
from plywise.env.calibration.calibration import calibrate
from plywise.env.costs.chains import realised_chain
from plywise.env.costs.latency import LatencyTable
from plywise.env.costs.network_latency import PRECISELY, NetworkLatency
from plywise.env.costs.trial_graphs import Shapes, random_plans, trimmed_in
from plywise.env.execution.progress import tracked
from plywise.env.network.network import Network
from plywise.env.prices.pricing import Pricer
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.runtime import relative_time, time_model
from plywise.env.task.samples import labelled
from plywise.experiments.networks.zoo import untrained
from plywise.experiments.workbench.hollow import hollow
from plywise.experiments.workbench.plots import Points, against
from plywise.experiments.workbench.results_page import Page

NETWORKS = ("resnet20", "vgg16-bn", "mobilenet-v2")
PLANS = 60
SEED = 1
"""Of the plans; those that latencies are calibrated on are drawn with another one."""

PREDICTED = {
    "timed": "whole graph timed, layers put in",
    "predicted": "layers timed alone, calibrated",
    "summed": "layers timed alone, added up",
    "macs": "macs",
}

PASSES = 5
SHAPE = (1, 3, 32, 32)


@dataclass(frozen=True)
class Outcome:
    """What is known of the plans of one network, `(plans,)` each, as shares of the original's.

    Attributes:
        measured: times of the exported files.
        again: `(2, plans)` the same of half of the passes and of the others: what no forecast can be better than.
        timed, predicted, summed, macs: what they are predicted from, see `PREDICTED`.
        original: milliseconds of the original's file.
        calibrating, pricing: seconds of timing whole graphs, and all that a price table may ask for.
        timing: seconds that a plan's graph takes to be put together and timed.
    """

    measured: Doubles
    again: Doubles
    timed: Doubles
    predicted: Doubles
    summed: Doubles
    macs: Doubles
    original: float
    calibrating: float
    pricing: float
    timing: float


def main(names: Sequence[str] = NETWORKS, plans: int = PLANS) -> None:
    """Measures and writes the page.

    Args:
        names: networks to study.
        plans: of each.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    found = {name: studied(name, plans) for name in names}
    page = Page("latency_study", "python -m plywise.experiments.studies.latency_study", time.perf_counter() - started)
    page.text(
        f"{plans} random plans of each network, 32x32 images, random weights, batch 1, one thread. Each plan is "
        "exported; each file runs interleaved with the original's. All times are shares of the original's, for this "
        "machine changes its speed while the study runs, and medians of "
        f"{PASSES} passes, in each of which a plan's file and its graph are timed one after the other, for the machine "
        "changes what a plan saves, too. A plan that is scored exactly has its whole graph timed; the price list and "
        "the walks use layers timed alone, calibrated on whole graphs of other plans."
    )
    rows = []
    for name, outcome in found.items():
        rows.append((name, "the file itself, other passes", *_fit(outcome.again[0], outcome.again[1], "again")))
        rows += [
            (name, words, *_fit(getattr(outcome, kind), outcome.measured, kind)) for kind, words in PREDICTED.items()
        ]
    page.table(("network", "predicted from", "median error, percent", "90th percentile", "Spearman"), rows)
    page.figure(
        against(
            {
                name: [Points(o.measured, getattr(o, kind), label=PREDICTED[kind]) for kind in ("timed", "predicted")]
                for name, o in found.items()
            },
            "file measured, share of the original",
            "predicted, share of the original",
            equal=True,
        ),
        "What is predicted of each plan against its file; on the line both are the same:",
    )
    page.text(
        "Seconds of measuring: whole graphs to calibrate on, every layer that a price table may ask for, and one plan "
        "looked at for real. Milliseconds of the original, and range of the files as shares of it:"
    )
    page.table(
        ("network", "calibrating", "all layers", "one plan", "original, ms", "files"),
        [
            (
                name,
                f"{o.calibrating:.1f}",
                f"{o.pricing:.1f}",
                f"{o.timing:.2f}",
                f"{o.original:.2f}",
                f"{o.measured.min():.2f} to {o.measured.max():.2f}",
            )
            for name, o in found.items()
        ],
    )
    page.text("What macs miss: pairs of plans of which the one with fewer macs is slower by 5 % or more:")
    page.table(("network", "share of all pairs"), [(name, f"{100 * _inverted(o):.0f} %") for name, o in found.items()])
    page.write(Console())


def studied(name: str, plans: int) -> Outcome:
    """Returns what is predicted and what is measured of one network."""
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = Network.of(untrained(name), images[:4], name)
    drawn = list(random_plans(network, plans, SEED))
    with tempfile.TemporaryDirectory() as folder:
        table = LatencyTable(Path(folder) / "latency.sqlite")
        whole = NetworkLatency(network, table)
        calibrating = _seconds(lambda: whole.overhead)
        pricer = Pricer(Bank(network, calibrate(network, labelled(images, torch.arange(64) % 10))), whole)
        pricing = _seconds(lambda: table.milliseconds(pricer.every_chain(), progress=False))
        files = [Path(folder) / f"{place}.onnx" for place in range(plans + 1)]
        export_onnx(network.model, network.interface, files[0])
        pairs = zip(drawn, files[1:], strict=True)
        shapes = [_exported(network, plan, file) for plan, file in tracked(pairs, name, plans)]
        original = time_model(files[0], SHAPE)
        passes, timed, timing = _in_turns(whole, shapes, files)
        chains = [network.operations, *(each for each, _ in shapes)]
        predicted = whole.predicted(chains)
        summed = np.array([table.milliseconds(list(each.values()), progress=False).sum() for each in chains])
        macs = np.array([float(sum(each.macs for chain in plan.values() for each in chain)) for plan in chains])
    predicted, summed, macs = (values[1:] / values[0] for values in (predicted, summed, macs))
    measured, again = np.median(passes, axis=0), np.array([np.median(passes[part::2], axis=0) for part in (0, 1)])
    return Outcome(measured, again, timed, predicted, summed, macs, original, calibrating, pricing, timing)


def _in_turns(whole: NetworkLatency, shapes: Sequence[Shapes], files: Sequence[Path]) -> tuple[Doubles, Doubles, float]:
    """Times each plan's file and its graph one after the other, for the host changes by the minute what a plan saves.

    Returns:
        Both as shares of the original's, `(PASSES, plans)` and the medians over passes, and the seconds that a plan's
        graph takes.
    """
    measured, timed, seconds = np.empty((PASSES, len(shapes))), np.empty((PASSES, len(shapes))), 0.0
    for turn in range(PASSES):
        for place, (plan, file) in enumerate(zip(shapes, files[1:], strict=True)):
            measured[turn, place] = relative_time(file, files[0], SHAPE, precision=PRECISELY)[0]
            started = time.perf_counter()
            timed[turn, place] = whole.measured(*plan) / (whole.overhead.original or 1.0)
            seconds += time.perf_counter() - started
    return measured, np.median(timed, axis=0), seconds / timed.size


def _exported(network: Network, plan: Plan, file: Path) -> Shapes:
    """Writes the file of a plan and returns what it runs."""
    model = hollow(network, plan)
    export_onnx(model, network.interface, file)
    modules = dict(model.named_modules())
    chains = {layer.name: realised_chain(modules[layer.name], layer) for layer in network.layers}
    return chains, trimmed_in(network, model)


def _fit(values: Doubles, measured: Doubles, kind: str) -> tuple[str, str, str]:
    rank = f"{spearmanr(values, measured).statistic:.3f}"
    if kind == "macs":
        return "", "", rank
    errors = 100 * np.abs(values / measured - 1)
    return f"{np.median(errors):.1f}", f"{np.percentile(errors, 90):.1f}", rank


def _inverted(outcome: Outcome) -> float:
    """Returns the share of pairs whose order by macs is wrong by at least 5 % of time."""
    fewer = outcome.macs[:, None] < outcome.macs
    slower = outcome.measured[:, None] > 1.05 * outcome.measured
    return float((fewer & slower).sum() / (len(outcome.macs) * (len(outcome.macs) - 1) / 2))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
