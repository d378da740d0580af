"""How well latencies are foretold: `python -m plywise.experiments.latency_study`.

Random plans over the whole range are exported for real and timed; weights are random, for time does not depend on them.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import spearmanr
from torch import nn

from plywise.env.latency import Chain, LatencyTable
from plywise.env.mould import Mould
from plywise.env.network import Network
from plywise.env.network_latency import NetworkLatency
from plywise.env.onnx_export import export_onnx
from plywise.env.runtime import open_session, time_sessions
from plywise.env.subject import realised_chain
from plywise.experiments.hollow import hollow, random_plan
from plywise.experiments.results_page import Page
from plywise.experiments.zoo import untrained

NETWORKS = ("resnet20", "vgg16-bn", "mobilenet-v2")
PLANS = 60
ROUNDS = 30

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """Milliseconds of the plans of one network, `(plans,)` each, and what it took to know them.

    Attributes:
        measured: of the exported files.
        whole: of the same layers in the network's mould.
        foretold: from the calibrated prices.
        summed: layers alone, added up.
        macs: multiply-adds.
        seconds: of measuring: calibration and the layers of the plans.
    """

    measured: Floats
    whole: Floats
    foretold: Floats
    summed: Floats
    macs: Floats
    seconds: float


def main() -> None:
    """Measures and writes the page."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    found = {name: studied(name) for name in NETWORKS}
    page = Page("latency_study", "python -m plywise.experiments.latency_study", time.perf_counter() - started)
    page.text(
        f"{PLANS} random plans of each network, 32x32 images, random weights, batch 1, one thread, milliseconds of the "
        f"processor. Each plan is exported; the files run in turns, {ROUNDS} times, medians. `foretold`: layers timed "
        "one by one, calibrated on complete graphs of other plans. `in its mould`: the plan's layers put into the "
        "graph of the network and timed, without an export. `summed`: layers one by one. Errors in percent."
    )
    rows = []
    for name, outcome in found.items():
        for what in ("foretold", "whole", "summed", "macs"):
            rows.append((f"{name}, {'in its mould' if what == 'whole' else what}", *_fit(outcome, what)))
    page.table(("network", "median error", "90th percentile", "Spearman"), rows)
    page.text("Seconds of measuring, and the range of what was measured, ms:")
    page.table(
        ("network", "seconds", "fastest", "slowest"),
        [(n, f"{o.seconds:.0f}", f"{o.measured.min():.3f}", f"{o.measured.max():.3f}") for n, o in found.items()],
    )
    page.text("What macs miss: pairs of plans of which the one with fewer macs is the slower file, by at least 5 %:")
    page.table(("network", "share of all pairs"), [(name, f"{_inverted(o):.0%}") for name, o in found.items()])
    page.write(Console())


def studied(name: str) -> Outcome:
    """Returns what is foretold and what is measured of one network."""
    network = Network.of(untrained(name), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), name)
    generator = np.random.default_rng(0)
    models = [hollow(network, random_plan(network, generator)) for _ in range(PLANS)]
    plans = [_chains(network, model) for model in models]
    with tempfile.TemporaryDirectory() as folder:
        table = LatencyTable(Path(folder) / "latency.sqlite")
        started = time.perf_counter()
        foretold = NetworkLatency(network, table).milliseconds(plans)
        seconds = time.perf_counter() - started
        mould = Mould(network)
        sessions = [open_session(mould.filled(plan)) for plan in plans]
        for place, model in enumerate(models):
            path = Path(folder) / f"{place}.onnx"
            export_onnx(model, network.example, path)
            sessions.append(open_session(path))
        shape = (1, *network.example.shape[1:])
        taken = np.array([timing.median_ms for timing in time_sessions(sessions, shape, ROUNDS)])
        summed = np.array([table.milliseconds(list(plan.values()), progress=False).sum() for plan in plans])
    macs = np.array([float(sum(each.macs for chain in plan.values() for each in chain)) for plan in plans])
    return Outcome(taken[PLANS:], taken[:PLANS], foretold, summed, macs, seconds)


def _chains(network: Network, model: nn.Module) -> dict[str, Chain]:
    modules = dict(model.named_modules())
    return {layer.name: realised_chain(modules[layer.name], layer) for layer in network.layers}


def _fit(outcome: Outcome, what: str) -> tuple[str, str, str]:
    values, measured = getattr(outcome, what), outcome.measured
    rank = f"{spearmanr(values, measured).statistic:.3f}"
    if what == "macs":
        return "", "", rank
    errors = 100 * np.abs(values / measured - 1)
    return f"{np.median(errors):.1f}", f"{np.percentile(errors, 90):.1f}", rank


def _inverted(outcome: Outcome) -> float:
    """Returns the share of pairs whose order by macs is wrong by at least 5 % of time."""
    fewer = outcome.macs[:, None] < outcome.macs
    slower = outcome.measured[:, None] > 1.05 * outcome.measured
    return float((fewer & slower).sum() / (len(outcome.macs) * (len(outcome.macs) - 1) / 2))


if __name__ == "__main__":
    main()
