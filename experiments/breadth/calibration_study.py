"""What do layers of many features cost: to calibrate, to rank their channels, to compress?

`python -m plywise.experiments.breadth.calibration_study [NAME ...]` writes `experiments/results/calibration_study.md`.
ResNet-18 comes from torchvision: `pip install --constraint constraints.txt -e '.[breadth]'`. Each network runs in a
process of its own, with one thread; seconds are the processor's.
"""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import torch
from rich.console import Console
from torch import Tensor, nn

from plywise.compressors.modules.layers import weight_matrices
from plywise.compressors.recipes.technique import Recipe
from plywise.env.calibration.calibration import calibrate
from plywise.env.calibration.channel_importance import gate_importance
from plywise.env.execution.progress import tracked
from plywise.env.network.network import Network
from plywise.env.task.samples import Samples, labelled
from plywise.experiments.breadth.architectures import ARCHITECTURES
from plywise.experiments.workbench.parts import Parts
from plywise.experiments.workbench.results_page import Page

ITEMS, CLASSES = 512, 10

RECIPES = ("uniform_quantization(bits=4)", "magnitude_pruning(sparsity=0.5)", "low_rank(ratio=0.4)")
"""That every layer is compressed by, one after the other."""


class Taps(nn.Module):
    """Two convolutions over a signal, the second of 64 taps over 128 channels: 8,192 features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide = nn.Conv1d(1, 128, 8, 2, 3), nn.Conv1d(128, 64, 64, 4, 30)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, signal: Tensor) -> Tensor:
        """Maps `(n, 1, 1024)` to logits `(n, CLASSES)`."""
        logits: Tensor = self.head(self.wide(self.first(signal).relu()).relu().mean(2))
        return logits


class Flattened(nn.Module):
    """Two convolutions whose outputs a linear layer reads at all positions, as in VGG."""

    def __init__(self, channels: int, positions: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, channels, 3, 1, 1)
        self.pool = nn.AdaptiveAvgPool2d(positions)
        self.wide, self.head = nn.Linear(channels * positions**2, outputs), nn.Linear(outputs, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Maps `(n, 3, h, w)` to logits `(n, CLASSES)`."""
        seen = self.pool(self.second(self.first(images).relu()).relu()).flatten(1)
        logits: Tensor = self.head(self.wide(seen).relu())
        return logits


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "64 taps": (Taps, (1, 1024)),
    "Linear(8192, 64)": (lambda: Flattened(128, 8, 64), (3, 32, 32)),
    "Linear(6272, 1024)": (lambda: Flattened(128, 7, 1024), (3, 28, 28)),
    "resnet18 at 48 x 48": (ARCHITECTURES["resnet18"].build, (3, 48, 48)),
}
"""By name: what makes them, and the shape of an input."""


@dataclass
class Row:
    """What one network comes to.

    Attributes:
        parameters: how many it has.
        features: of its widest layer.
        seconds: by part.
        gigabytes: of memory at most.
    """

    parameters: int
    features: int
    seconds: dict[str, float] = field(default_factory=dict)
    gigabytes: float = 0.0


def row_of(name: str, items: int = ITEMS) -> Row:
    """Returns the row of a network; takes this process's memory for the network's own.

    Args:
        name: of NETWORKS.
        items: that it is calibrated on.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    inputs = torch.randn(items, *shape, generator=torch.Generator().manual_seed(0))
    samples = labelled(inputs, torch.arange(items) % CLASSES)
    network = Network.of(build().eval(), samples.joined(4), name, samples.judge.forward)
    widest = max(weight_matrices(network.modules[layer.name]).shape[2] for layer in network.layers)
    row, parts = Row(sum(part.numel() for part in network.model.parameters()), widest), Parts(time.process_time)
    _study(network, samples.laid_out(network.memory_format), parts)
    row.seconds, row.gigabytes = parts.seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return row


def _study(network: Network, samples: Samples, parts: Parts) -> None:
    for _ in range(2):  # the first pass prepares kernels
        with parts("forward"), torch.no_grad():
            for batch in samples:
                network.forward(network.model, batch)
    with parts("gradients"):
        gate_importance(network, samples, 0)
    with parts("calibration"):
        statistics = calibrate(network, samples).statistics
    with parts("ranking"):
        for group in network.groups:
            statistics[group.leader].importance["reconstruction"]
    for text in RECIPES:
        recipe = Recipe.parse(text)
        with parts(text):
            for layer in network.layers:
                if network.unsupported(layer.name, recipe) is None:
                    recipe.compress(network.modules[layer.name], statistics[layer.name])


def main(*names: str) -> None:
    """Studies all networks, or those of some names, and writes the page."""
    started = time.perf_counter()
    asked = list(names or NETWORKS)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        rows = dict(zip(asked, tracked(pool.map(row_of, asked), "networks", len(asked)), strict=True))
    command = "python -m plywise.experiments.breadth.calibration_study"
    page = Page("calibration_study", command, time.perf_counter() - started)
    write(page, rows)
    page.write(Console())


def write(page: Page, rows: dict[str, Row]) -> None:
    """Puts rows on a page."""
    page.text(
        f"Seconds of the processor, one thread, {ITEMS} items of random numbers, random weights. Forward: one pass "
        "over all items. Gradients: the pass forwards and backwards that ranks channels, part of calibration. Passes: "
        "calibration over forward; without gradients: the same, less the pass that takes them. Ranking: of the "
        "channels of all groups by reconstruction, done on demand. The last columns: every layer compressed once by a "
        "recipe. GiB: of memory at most, libraries included."
    )
    short = [text.split("(")[0] for text in RECIPES]
    headings = ("network", "parameters", "features", "forward", "gradients", "calibration", "passes")
    page.table(
        (*headings, "without gradients", "ranking", *short, "GiB"), [_cells(name, row) for name, row in rows.items()]
    )


def _cells(name: str, row: Row) -> tuple[str, ...]:
    seconds = row.seconds
    passes = seconds["calibration"] / seconds["forward"]
    without = (seconds["calibration"] - seconds["gradients"]) / seconds["forward"]
    first = [f"{seconds[part]:.2f}" for part in ("forward", "gradients", "calibration")]
    last = [f"{seconds[part]:.1f}" for part in ("ranking", *RECIPES)]
    shown = (f"{row.parameters:,}", f"{row.features:,}", *first, f"{passes:.1f}", f"{without:.1f}", *last)
    return (name, *shown, f"{row.gigabytes:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
