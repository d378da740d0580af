"""What an exact score costs, in forward passes of the original: `python -m plywise.experiments.score_study`."""

import copy
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console

from plywise.compressors.packed_file import save_packed
from plywise.compressors.packed_module import packed_size
from plywise.compressors.plan import Plan
from plywise.compressors.recipe import Recipe
from plywise.env.activation_memory import shared_memory
from plywise.env.bank import REPAIR_INPUTS, Bank, Stitched
from plywise.env.calibration import calibrate
from plywise.env.network import Network
from plywise.env.samples import Samples
from plywise.env.scheme import Scheme
from plywise.env.scorer import Scorer
from plywise.env.sensitivity import divergence
from plywise.experiments.resnet import cifar_resnet
from plywise.experiments.results_page import Page

IMAGES, GROWTH_IMAGES, CALIBRATION_IMAGES = 2000, 256, 128
DEPTHS = (20, 32, 44, 56, 110)
COUNTS = (500, 1000, 2000, 4000, 8000)
REPEATS = 3
STEPS = 8
ACCEPTED = 0.25
"""Share of the steps of a local search that are kept."""
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

    def fill(self, plan: Plan) -> None:
        """Compresses the layers of a plan that the bank does not hold yet."""
        self._bank.stitch(plan, 0)

    def score(self, plan: Plan) -> None:
        """Scores a plan exactly, all but reading the latencies of its layers; nothing of earlier plans is reused."""
        self._score(self._bank, plan)

    def score_again(self, plan: Plan, scorer: Scorer) -> None:
        """Scores a plan and reuses what the scorer remembers of earlier ones."""
        self._finish(*scorer.run(plan))

    def score_copy(self, plan: Plan) -> None:
        """Scores a plan without a bank: copies the network, calibrates and compresses the copy."""
        self._score(self._calibrated(Network.of(copy.deepcopy(self.network.original), self.network.example)), plan)

    def search(self) -> tuple[float, float]:
        """Returns the seconds of a local search without and with reuse of what plans share."""
        plans = list(self._steps())
        for plan in plans:
            self.fill(plan)
        scorer = Scorer(self._bank, self._validation)
        self.score_again(plans[0], scorer)
        pairs = [(_seconds(self.score, plan), _seconds(self.score_again, plan, scorer)) for plan in plans[1:]]
        return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)

    def _steps(self) -> Iterator[Plan]:
        """Yields a start, then plans that differ in one random layer from the last one kept."""
        chooser = random.Random(0)
        kept = self.plan(RECIPES[0])
        yield kept
        for _ in range(STEPS):
            layer, bits = chooser.choice(self.network.layers).name, chooser.choice((2, 3, 5, 6))
            plan = Plan(kept.network, {**kept, layer: Recipe.parse(f"uniform_quantization(bits={bits})")})
            yield plan
            kept = plan if chooser.random() < ACCEPTED else kept

    def _calibrated(self, network: Network) -> Bank:
        return Bank(network, calibrate(network, self._calibration.inputs, self._calibration.labels))

    def _score(self, bank: Bank, plan: Plan) -> None:
        stitched = bank.stitch(plan)
        self._finish(stitched, self._validation.logits(stitched.model))

    def _finish(self, stitched: Stitched, logits: torch.Tensor) -> None:
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
    without, reusing = scored.search()
    depths = [(depth, _growth(depth, GROWTH_IMAGES)) for depth in DEPTHS]
    counts = [(count, _growth(DEPTHS[0], count)) for count in COUNTS]
    page = Page("score_study", "python -m plywise.experiments.score_study", time.perf_counter() - started)
    page.text(
        "Seconds of the processor, one thread, in one run; random weights and images. A score puts the plan together "
        f"from a warm bank, matches moments on {REPAIR_INPUTS} images, runs the validation images, packs the weights "
        "and counts their bytes; the latencies of the layers are looked up in a file, which is left out. `by copy` "
        f"calibrates a copy on {CALIBRATION_IMAGES} images, compresses its layers and does the same; one run each."
    )
    page.text(f"ResNet-{DEPTHS[0]}, {IMAGES:,} images; 1 is a forward pass of the original, medians of {REPEATS}:")
    page.table(
        ("recipe on all layers", "exact score", "lowest to highest", "by copy", "filling the bank"),
        [
            (name, f"{mid:.2f}", f"{low:.2f} to {high:.2f}", f"{by_copy:.2f}", f"{fill:.2f}")
            for name, low, mid, high, by_copy, fill in ratios
        ],
    )
    page.text(
        f"A local search of {STEPS} steps from `{RECIPES[0]}`, each with other bits for one random layer, one in "
        f"{1 / ACCEPTED:.0f} kept: {without / STEPS:.2f} s a step, {reusing / STEPS:.2f} s where what a plan shares "
        f"with earlier ones up to the changed layer is reused: {without / reusing:.2f} times faster. Remembered: "
        f"{shared_memory().used / 2**20:,.0f} MiB of at most {shared_memory().ceiling / 2**20:,.0f}; peak of the "
        f"process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f} MiB."
    )
    page.text(
        f"`{RECIPES[0]}` on deeper networks, {GROWTH_IMAGES} images: seconds grow with the layers to the power of "
        f"{_exponent([(depth - 2, taken) for depth, taken in depths]):.2f} (fitted)."
    )
    page.table(("network", "seconds a score"), [(f"ResNet-{depth}", f"{taken:.2f}") for depth, taken in depths])
    page.text(f"ResNet-{DEPTHS[0]} over more images: to the power of {_exponent(counts):.2f}.")
    page.table(("images", "seconds a score"), [(f"{count:,}", f"{taken:.2f}") for count, taken in counts])
    page.write(Console())


def _ratios(scored: Scored, plan: Plan) -> tuple[float, float, float, float, float]:
    """Returns the lowest, median and highest cost of a score, that by copy and of the bank, in forward passes."""
    fill = _seconds(scored.fill, plan)
    scored.score(plan)  # warms up
    pairs = [(_seconds(scored.forward), _seconds(scored.score, plan)) for _ in range(REPEATS)]
    forward = median(pair[0] for pair in pairs)
    taken = [pair[1] / forward for pair in pairs]
    by_copy = _seconds(scored.score_copy, plan)
    return min(taken), median(taken), max(taken), by_copy / forward, fill / forward


def _growth(depth: int, images: int) -> float:
    """Returns the fewer seconds of two scores."""
    scored = Scored(depth, images)
    plan = scored.plan(RECIPES[0])
    scored.fill(plan)
    return min(_seconds(scored.score, plan) for _ in range(2))


def _exponent(pairs: list[tuple[int, float]]) -> float:
    """Returns the power of the first that the second grows with."""
    return float(np.polyfit(np.log([pair[0] for pair in pairs]), np.log([pair[1] for pair in pairs]), 1)[0])


def _seconds(work: Callable[..., object], *arguments: object) -> float:
    """Returns the processor's seconds: what others do on the machine counts less than on the clock."""
    start = time.process_time()
    work(*arguments)
    return time.process_time() - start


def _samples(count: int, generator: torch.Generator) -> Samples:
    inputs = torch.randn(count, 3, 32, 32, generator=generator)
    return Samples(inputs, torch.randint(10, (count,), generator=generator))


if __name__ == "__main__":
    main()
