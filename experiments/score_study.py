"""What an exact score costs, in forward passes of the original: `python -m plywise.experiments.score_study`."""

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console

from plywise.compressors.packed_file import save_packed
from plywise.compressors.packed_module import packed_size
from plywise.compressors.plan import Plan
from plywise.env.bank import REPAIR_INPUTS, Bank
from plywise.env.calibration import calibrate
from plywise.env.network import Network
from plywise.env.samples import Samples
from plywise.env.scheme import Scheme
from plywise.env.sensitivity import divergence
from plywise.experiments.resnet import cifar_resnet
from plywise.experiments.results_page import Page

IMAGES, GROWTH_IMAGES, CALIBRATION_IMAGES = 2000, 256, 128
DEPTHS = (20, 32, 44, 56)
REPEATS = 3
INTEGERS = "uniform_quantization(bits=4) + activation_quantization"
RECIPES = ("uniform_quantization(bits=4)", INTEGERS, "filter_pruning(ratio=0.5)", "low_rank(ratio=0.4)")


class Scored:
    """A network with random weights and images, for time depends on neither.

    Attributes:
        network: what is compressed.
    """

    def __init__(self, depth: int, images: int) -> None:
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.network = Network.of(cifar_resnet(depth), torch.randn(4, 3, 32, 32, generator=generator))
        self._calibration = _samples(CALIBRATION_IMAGES, generator)
        self._validation = _samples(images, generator)
        self._bank = self._calibrated(self.network)
        self._original = self.forward()

    def plan(self, recipe: str) -> Plan:
        """Returns the plan with `recipe` on each layer that can take it."""
        return Scheme.of({"*": recipe}).on(self.network)[0]

    def forward(self) -> torch.Tensor:
        """Runs the original over the validation images."""
        return self._validation.logits(self.network.model)

    def score(self, plan: Plan) -> None:
        """Scores a plan exactly, all but reading the latencies of its layers."""
        self._score(self._bank, plan)

    def score_copy(self, plan: Plan) -> None:
        """Scores a plan without a bank: copies the network, calibrates and compresses the copy."""
        self._score(self._calibrated(Network.of(copy.deepcopy(self.network.original), self.network.example)), plan)

    def _calibrated(self, network: Network) -> Bank:
        return Bank(network, calibrate(network, self._calibration.inputs, self._calibration.labels))

    def _score(self, bank: Bank, plan: Plan) -> None:
        stitched = bank.stitch(plan)
        logits = self._validation.logits(stitched.model)
        self._validation.accuracy(logits)
        divergence(self._original, logits)
        for module in stitched.replaced.values():
            packed_size(module)
        with tempfile.TemporaryDirectory() as folder:
            save_packed(stitched.model, self.network.original, Path(folder) / "weights", {})


def main() -> None:
    """Measures and writes the page."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    scored = Scored(DEPTHS[0], IMAGES)
    ratios = [(recipe, *_ratios(scored, scored.plan(recipe))) for recipe in RECIPES]
    growth = [(depth, _growth(depth)) for depth in DEPTHS]
    page = Page("score_study", "python -m plywise.experiments.score_study", time.perf_counter() - started)
    page.text(
        "Seconds of the processor, one thread, in one run; random weights and images. A score puts the plan together "
        f"from a warm bank, matches moments on {REPAIR_INPUTS} images, runs the validation images, packs the weights "
        "and counts their bytes; the latencies of the layers are looked up in a file, which is left out. `by copy` "
        f"calibrates a copy on {CALIBRATION_IMAGES} images, compresses its layers and does the same; one run each."
    )
    page.text(f"ResNet-{DEPTHS[0]}, {IMAGES:,} images; 1 is a forward pass of the original, medians of {REPEATS}:")
    page.table(
        ("recipe on all layers", "exact score", "lowest to highest", "by copy"),
        [
            (name, f"{mid:.2f}", f"{low:.2f} to {high:.2f}", f"{by_copy:.2f}")
            for name, low, mid, high, by_copy in ratios
        ],
    )
    exponent = np.polyfit(np.log([depth - 2 for depth, _ in growth]), np.log([taken for _, taken in growth]), 1)[0]
    page.text(
        f"`{RECIPES[0]}` on deeper networks, {GROWTH_IMAGES} images: seconds grow with the layers to the power of "
        f"{exponent:.2f} (fitted)."
    )
    page.table(("network", "seconds a score"), [(f"ResNet-{depth}", f"{taken:.2f}") for depth, taken in growth])
    page.write(Console())


def _ratios(scored: Scored, plan: Plan) -> tuple[float, float, float, float]:
    """Returns the lowest, median and highest cost of a score and that of one by copy, in forward passes."""
    scored.score(plan)  # fills the bank
    pairs = [(_seconds(scored.forward), _seconds(lambda: scored.score(plan))) for _ in range(REPEATS)]
    forward = median(pair[0] for pair in pairs)
    taken = [pair[1] / forward for pair in pairs]
    return min(taken), median(taken), max(taken), _seconds(lambda: scored.score_copy(plan)) / forward


def _growth(depth: int) -> float:
    scored = Scored(depth, GROWTH_IMAGES)
    plan = scored.plan(RECIPES[0])
    scored.score(plan)
    return median(_seconds(lambda: scored.score(plan)) for _ in range(REPEATS))


def _seconds(work: Callable[[], object]) -> float:
    """Returns the processor's seconds: what others do on the machine counts less than on the clock."""
    start = time.process_time()
    work()
    return time.process_time() - start


def _samples(count: int, generator: torch.Generator) -> Samples:
    inputs = torch.randn(count, 3, 32, 32, generator=generator)
    return Samples(inputs, torch.randint(10, (count,), generator=generator))


if __name__ == "__main__":
    main()
