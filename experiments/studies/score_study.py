"""What scores and prices cost and how well bytes are predicted: `python -m plywise.experiments.studies.score_study`."""

import copy
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from plywise.agent.search.greedy import Greedy
from plywise.agent.search.knapsack import Knapsack
from plywise.agent.search.random_search import RandomSearch
from plywise.agent.search.search_method import SearchMethod
from plywise.compressors.packing.packed_file import save_packed
from plywise.compressors.packing.packed_module import packed_size
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank.activation_memory import shared_memory
from plywise.env.bank.bank import Bank, Stitched
from plywise.env.bank.repair import FULL, NONE
from plywise.env.bank.scorer import Scorer
from plywise.env.calibration.calibration import calibrate
from plywise.env.network.network import Network
from plywise.env.network.scheme import Scheme
from plywise.env.prices.pricing import STORAGE_MARGIN
from plywise.env.score.demand import Demand
from plywise.env.storage.memory import limit_memory
from plywise.env.task.outputs import divergences
from plywise.env.task.samples import Labelled, accuracy, labelled
from plywise.experiments.commands.study import CALIBRATION_IMAGES, samples
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.networks.model_loading import load_model
from plywise.experiments.networks.resnet import cifar_resnet
from plywise.experiments.studies.price_check import PriceCheck, fresh_cache
from plywise.experiments.workbench.plots import Points, fitted_power, growth
from plywise.experiments.workbench.results_page import Page
from plywise.experiments.workbench.study_files import resnet_files

IMAGES = 2000
GROWTH_IMAGES, GROWTH_CALIBRATION = 1024, 64
"""Images scored, and images calibrated and repaired on, of the networks of growing depth: in the same proportion as
2,000 and 128."""
GROWTH_REPEATS = 5
DEPTHS = (20, 32, 44, 56, 110)
COUNTS = (500, 1000, 2000, 4000, 8000)
REPEATS = 7
STEPS = 24
ACCEPTED = 0.25
"""Share of the steps of a local search that are kept."""
INTEGERS = "uniform_quantization(bits=4) + activation_quantization"
MEMORY = 4
"""GiB that may be kept between scores (`--memory`)."""
PLANS = 40
BUDGET = 12
"""Plans that a search scores, to see what stopping early saves."""
WANTED = Demand(1.0, max_storage=0.15)
SEARCHES = (RandomSearch(), Greedy(), Knapsack())
NETWORKS = ("digits-lenet", "resnet20")
RECIPES = ("uniform_quantization(bits=4)", INTEGERS, "filter_pruning(ratio=0.5)", "low_rank(ratio=0.4)")


class Scored:
    """A network with images that it is calibrated on and others that it is scored on.

    Attributes:
        network: what is compressed.
    """

    def __init__(self, model: nn.Module, calibration: Labelled, validation: Labelled) -> None:
        self.network = Network.of(model, calibration.inputs[:4])
        self._calibration = calibration.laid_out(self.network.memory_format)
        self._given = validation
        self._validation = self._given.laid_out(self.network.memory_format)
        self._bank = self._calibrated(self.network)
        self._original = self.forward()

    @classmethod
    def trained(cls, images: int) -> "Scored":
        """Returns the trained ResNet-20 with real images: how much is repaired depends on them."""
        weights, source = resnet_files()
        dataset = load_dataset(source)
        calibration, validation = (samples(dataset.train, count) for count in (CALIBRATION_IMAGES, images))
        return cls(load_model("resnet20", weights, dataset), calibration, validation)

    @classmethod
    def random(cls, depth: int) -> "Scored":
        """Returns a ResNet with random weights and images."""
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        calibration, validation = (_random_samples(n, generator) for n in (GROWTH_CALIBRATION, GROWTH_IMAGES))
        return cls(cifar_resnet(depth), calibration, validation)

    def first(self, images: int) -> "Scored":
        """Returns the same network with the same bank over fewer images."""
        fewer = copy.copy(self)
        fewer._given, fewer._validation = self._given.first(images), self._validation.first(images)
        fewer._original = self._original[:images]
        return fewer

    def plan(self, recipe: str) -> Plan:
        """Returns the plan with `recipe` on each layer that can take it."""
        return Scheme.of({"*": recipe}).on(self.network)[0]

    def forward(self) -> torch.Tensor:
        """Runs the original over the validation images as they are given."""
        return self._given.logits(self.network.model)

    def forward_laid_out(self) -> torch.Tensor:
        """Does so with the images in memory as scores have them."""
        return self._validation.logits(self.network.model)

    def fill(self, plan: Plan) -> None:
        """Compresses the layers of a plan that the bank does not hold yet."""
        self._bank.stitch(plan, NONE)

    def score(self, plan: Plan) -> None:
        """Scores a plan exactly, all but reading the latencies of its layers; nothing of earlier plans is reused."""
        self._score(self._bank, plan)

    def score_again(self, plan: Plan, scorer: Scorer) -> None:
        """Scores a plan and reuses what the scorer remembers of earlier ones."""
        self._finish(*scorer.run(plan, self._validation.logits))

    def score_copy(self, plan: Plan) -> None:
        """Scores a plan without a bank: copies the network, calibrates and compresses the copy."""
        self._score(self._calibrated(Network.of(copy.deepcopy(self.network.original), self.network.example)), plan)

    def search(self) -> tuple[float, float]:
        """Returns the seconds of a local search without and with reuse of what plans share."""
        plans = list(self._steps())
        for plan in plans:
            self.fill(plan)
        scorer = Scorer(self._bank)
        self.score_again(plans[0], scorer)
        pairs = [(_seconds(self.score, plan), _seconds(self.score_again, plan, scorer)) for plan in plans[1:]]
        return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)

    def _steps(self) -> Iterator[Plan]:
        """Yields a start, then plans that differ in one random layer from the last one kept."""
        chooser = random.Random(0)
        kept = self.plan(RECIPES[0])
        yield kept
        seen = [kept]
        while len(seen) <= STEPS:
            layer, bits = chooser.choice(self.network.layers).name, chooser.choice((2, 3, 5, 6))
            plan = Plan(kept.network, {**kept, layer: Recipe.parse(f"uniform_quantization(bits={bits})")})
            if plan in seen:  # no search scores a plan twice
                continue
            seen.append(plan)
            yield plan
            kept = plan if chooser.random() < ACCEPTED else kept

    def _calibrated(self, network: Network) -> Bank:
        return Bank(network, calibrate(network, self._calibration))

    def _score(self, bank: Bank, plan: Plan) -> None:
        stitched = bank.stitch(plan)
        self._finish(stitched, self._validation.logits(stitched.model))

    def _finish(self, stitched: Stitched, logits: torch.Tensor) -> None:
        accuracy(logits, self._validation.labels)
        divergences(logits, self._original).mean()
        for module in stitched.replaced.values():
            packed_size(module)
        with tempfile.TemporaryDirectory() as folder:
            save_packed(stitched.model, self.network.original, Path(folder) / "weights", {})


class ScoreCost(NamedTuple):
    """Of one recipe on all layers, in forward passes of the original: filling the bank, scores, a score by copy."""

    fill: float
    scores: list[float]
    by_copy: float


class SearchCost(NamedTuple):
    """Of a local search: seconds without and with reuse, and the process' peak before and after it, MiB."""

    without: float
    reusing: float
    before: float
    peak: float


def main() -> None:
    """Measures and writes the page."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    limit_memory(MEMORY)
    largest = Scored.trained(max(COUNTS))
    scored = largest.first(IMAGES)
    before = _peak()
    search = SearchCost(*scored.search(), before, _peak())
    costs, laid_out = _score_costs(scored)
    counts = list(zip(COUNTS, _taken([largest.first(count) for count in COUNTS]), strict=True))
    depths = list(zip(DEPTHS, _taken([Scored.random(depth) for depth in DEPTHS]), strict=True))
    checks, searches = [], []
    for name in NETWORKS:
        weights, images = resnet_files() if name == "resnet20" else (None, "digits")
        dataset = load_dataset(images)
        network = load_model(name, weights, dataset)
        with fresh_cache():
            check = PriceCheck(name, network, dataset)
            checks.append((check, check.storage_errors(PLANS)))
            searches += [_searched(check, method) for method in SEARCHES]
    page = Page("score_study", "python -m plywise.experiments.studies.score_study", time.perf_counter() - started)
    _write_costs(page, costs, laid_out, search)
    _write_growth(page, depths, counts)
    _write_prices(page, checks)
    _write_searches(page, searches)
    page.write(Console())


def _score_costs(scored: Scored) -> tuple[dict[str, ScoreCost], float]:
    """Measures all recipes interleaved, so that what others do on the machine meets all alike.

    Returns:
        By recipe, and the original's pass with its images laid out as scores have them.
    """
    plans = {recipe: scored.plan(recipe) for recipe in RECIPES}
    fills = {recipe: _seconds(scored.fill, plan) for recipe, plan in plans.items()}
    rounds = [
        (
            _seconds(scored.forward),
            _seconds(scored.forward_laid_out),
            {recipe: _seconds(scored.score, plan) for recipe, plan in plans.items()},
        )
        for _ in range(REPEATS)
    ]
    forward = median(taken for taken, _, _ in rounds)
    costs = {
        recipe: ScoreCost(
            fills[recipe] / forward,
            sorted(scores[recipe] / taken for taken, _, scores in rounds),
            _seconds(scored.score_copy, plan) / forward,
        )
        for recipe, plan in plans.items()
    }
    return costs, median(laid_out / taken for taken, laid_out, _ in rounds)


def _taken(each: Sequence[Scored]) -> list[float]:
    """Returns the fewest seconds of a few scores of each, interleaved."""
    plans = [scored.plan(RECIPES[0]) for scored in each]
    for scored, plan in zip(each, plans, strict=True):
        scored.fill(plan)
    rounds = [
        [_seconds(scored.score, plan) for scored, plan in zip(each, plans, strict=True)] for _ in range(GROWTH_REPEATS)
    ]
    return [min(taken) for taken in zip(*rounds, strict=True)]


def _searched(check: PriceCheck, method: SearchMethod) -> tuple[str, ...]:
    """Returns a row: what a search takes where hopeless plans are stopped early, and where all are run to the end."""
    for early in (True, False):  # compresses the layers
        check.search(method, WANTED, BUDGET, early)
    short, stopped, found = check.search(method, WANTED, BUDGET, early=True)
    whole, _, wanted = check.search(method, WANTED, BUDGET, early=False)
    same = "the same" if found.actions == wanted.actions else f"{found.outcome.score - wanted.outcome.score:+.3f}"
    plans = f"{stopped} of {found.evaluations}"
    return check.name, method.name, plans, f"{whole:.1f}", f"{short:.1f}", f"{100 * (1 - short / whole):.0f} %", same


def _write_costs(page: Page, costs: dict[str, ScoreCost], laid_out: float, search: SearchCost) -> None:
    page.text(
        "Seconds of the processor, one thread, in one run. A score puts the plan together "
        f"from a warm bank, repairs on {FULL.inputs} images, runs the validation images, packs the weights "
        "and counts their bytes; the latencies of the layers are looked up in a file, which is left out. `by copy` "
        f"calibrates a copy on {CALIBRATION_IMAGES} images, compresses its layers and does the same; one run each."
    )
    page.text(
        f"ResNet-{DEPTHS[0]}, {IMAGES:,} images; 1 is a forward pass of the original over the images as they are given "
        f"({laid_out:.2f} with their channels last in memory, which is how scores run them), medians of {REPEATS}:"
    )
    page.table(
        ("recipe on all layers", "exact score", "lowest to highest", "by copy", "filling the bank"),
        [
            (
                recipe,
                f"{median(cost.scores):.2f}",
                f"{cost.scores[0]:.2f} to {cost.scores[-1]:.2f}",
                f"{cost.by_copy:.2f}",
                f"{cost.fill:.2f}",
            )
            for recipe, cost in costs.items()
        ],
    )
    page.text(
        f"A local search of {STEPS} steps from `{RECIPES[0]}`, each with other bits for one random layer, one in "
        f"{1 / ACCEPTED:.0f} kept: {search.without / STEPS:.2f} s a step, {search.reusing / STEPS:.2f} s where what a "
        "plan shares with earlier ones up to the changed layer is reused: "
        f"{search.without / search.reusing:.2f} times faster. With `--memory {MEMORY}`, "
        f"{shared_memory().used / 2**20:,.0f} MiB of outputs were kept, of at most "
        f"{shared_memory().ceiling / 2**20:,.0f}; the peak of the process was {search.before:,.0f} MiB before the "
        f"search and {search.peak:,.0f} after it: {search.peak - search.before:,.0f} more, where "
        f"{MEMORY * 1024:,} may be kept."
    )


def _write_growth(page: Page, depths: list[tuple[int, float]], counts: list[tuple[int, float]]) -> None:
    layers = [depth - 2 for depth, _ in depths], [taken for _, taken in depths]
    images = [count for count, _ in counts], [taken for _, taken in counts]
    page.text(
        f"`{RECIPES[0]}` on deeper networks of random weights, {GROWTH_IMAGES:,} random images, repaired on "
        f"{GROWTH_CALIBRATION}, the proportion of {IMAGES:,} and {FULL.inputs}: seconds (fewest of {GROWTH_REPEATS}, "
        "all interleaved) grow with the layers to the power of "
        f"{fitted_power(*layers)[0]:.2f} (fitted)."
    )
    page.table(("network", "seconds a score"), [(f"ResNet-{depth}", f"{taken:.2f}") for depth, taken in depths])
    page.text(f"ResNet-{DEPTHS[0]} over more images: to the power of {fitted_power(*images)[0]:.2f}.")
    page.table(("images", "seconds a score"), [(f"{count:,}", f"{taken:.2f}") for count, taken in counts])
    page.figure(
        growth(
            {
                "layers": Points(*layers, label=f"{GROWTH_IMAGES:,} images"),
                "images": Points(*images, label=f"ResNet-{DEPTHS[0]}"),
            },
            "seconds a score",
        ),
        "Both on logarithmic axes, with the powers that were fitted:",
    )


def _write_prices(page: Page, checks: list[tuple[PriceCheck, NDArray[np.float64]]]) -> None:
    page.text(
        "Price tables made from nothing, for a declared device, so that no latency is measured. 1 is a forward pass "
        "of the original over its calibration images, of real data:"
    )
    parts = tuple(checks[0][0].seconds)
    page.table(
        ("network", "seconds of a pass", "images", *parts, "all"),
        [
            (
                check.name,
                f"{check.forward:.3f}",
                str(len(check.subject.bank.calibration.samples)),
                *(f"{check.equivalents[part]:.0f}" for part in parts),
                f"{sum(check.equivalents.values()):.0f}",
            )
            for check, _ in checks
        ],
    )
    page.text(
        f"Bytes that the table promises for {PLANS} random plans, against their packed files: what they differ by, "
        f"percent of the file. The table adds {100 * (STORAGE_MARGIN - 1):.1f} % to all layers on purpose, so that "
        "what just holds a ceiling on paper holds it on disk."
    )
    page.table(
        ("network", "median", "largest", "without the margin, median", "largest", "files above the promise"),
        [
            (
                check.name,
                *(f"{100 * figure:.2f}" for errors in found.T for figure in (median(abs(errors)), abs(errors).max())),
                f"{(found[:, 0] < 0).sum()} of {PLANS}",
            )
            for check, found in checks
        ],
    )


def _write_searches(page: Page, rows: list[tuple[str, ...]]) -> None:
    page.text(
        f"Searches of {BUDGET} plans at most, to {100 * (WANTED.max_storage or 1):.0f} % of the bytes and "
        f"{WANTED.max_accuracy_drop:g} point: plans that can no longer beat the best before them are stopped after an "
        "eighth, a quarter or half of the images. Seconds of the processor; a declared device, so that no plan is "
        "timed, which stopping saves too:"
    )
    page.table(("network", "method", "stopped", "all images, s", "stopping, s", "saved", "plan chosen"), rows)


def _peak() -> float:
    """Returns the most memory that the process has held so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _seconds(work: Callable[..., object], *arguments: object) -> float:
    """Returns the processor's seconds: what others do on the machine counts less than on the clock."""
    start = time.process_time()
    work(*arguments)
    return time.process_time() - start


def _random_samples(count: int, generator: torch.Generator) -> Labelled:
    inputs = torch.randn(count, 3, 32, 32, generator=generator)
    return labelled(inputs, torch.randint(10, (count,), generator=generator))


if __name__ == "__main__":
    main()
