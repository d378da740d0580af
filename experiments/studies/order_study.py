"""Why the stages act in the order that they do: `python -m plywise.experiments.studies.order_study`.

The literature advises to begin with the technique that disturbs least ("weaker first"); the stages of a recipe
begin with structure, which disturbs most. Each technique is put on the whole network, step after step, every step
calibrated on the network that the one before has left, in both orders.
"""

import copy
import tempfile
import time
from functools import cache
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from torch import nn

from plywise.compressors.formats.weight_format import weight_format
from plywise.compressors.packing.packed_file import save_packed
from plywise.env.bank.bank import Bank
from plywise.env.calibration.calibration import calibrate
from plywise.env.network.network import Network
from plywise.env.network.scheme import Scheme
from plywise.env.prices.pricing import original_storage
from plywise.env.task.samples import Labelled
from plywise.experiments.commands.study import samples
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.networks.model_loading import load_model
from plywise.experiments.workbench.results_page import Page
from plywise.experiments.workbench.study_files import resnet_files

DIGITS = ("digits-lenet", "digits-vgg", "digits-resnet-a")
PRUNED, RANK, ZEROS, BITS = (
    "filter_pruning(ratio=0.25)",
    "low_rank(ratio=0.6)",
    "magnitude_pruning(sparsity=0.5)",
    "uniform_quantization(bits=3)",
)
PAIRS = ((PRUNED, ZEROS), (PRUNED, BITS), (RANK, ZEROS), (RANK, BITS), (ZEROS, BITS))
CALIBRATION_IMAGES, TEST_IMAGES = 256, 2000

Outcome = tuple[float, float]
"""Points of accuracy lost on the test images, bytes of the file as a share of the original's."""


class Steps:
    """Techniques put on one whole network, one after the other.

    Attributes:
        network: the original.
    """

    def __init__(self, model: nn.Module, calibration: Labelled, test: Labelled) -> None:
        self.network = Network.of(model, calibration.inputs[:4])
        self.calibration, self.test = calibration, test
        self.accuracy = test.score(self.network.model).value
        self.after = cache(self._after)
        self.outcome = cache(self._outcome)

    def _outcome(self, *recipes: str) -> Outcome:
        """Returns what is left after `recipes`, in this order."""
        model = self.after(*recipes)
        with tempfile.TemporaryDirectory() as folder:
            size = save_packed(model, self.network.original, Path(folder) / "weights", {})
        drop = self.accuracy - self.test.score(model).value
        return drop, size / original_storage(self.network)

    def _after(self, *recipes: str) -> nn.Module:
        """Returns the network after `recipes`, each on all layers that can take it."""
        if not recipes:
            return self.network.model
        network = Network.of(_in_floats(self.after(*recipes[:-1])), self.calibration.inputs[:4])
        bank = Bank(network, calibrate(network, self.calibration))
        return bank.stitch(Scheme.of({"*": recipes[-1]}).on(network)[0]).model.eval()


def main() -> None:
    """Measures all networks and writes the page."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    digits = [_steps(name, "digits") for name in DIGITS]
    resnet = _resnet()
    groups = {f"Mean of {', '.join(DIGITS)}": digits, "ResNet-20, CIFAR-10 (JPEG copy)": [resnet]}
    found = {name: _rows(group) for name, group in groups.items()}
    page = Page("order_study", "python -m plywise.experiments.studies.order_study", time.perf_counter() - started)
    _explain(page)
    for name, (alone, pairs) in found.items():
        page.text(f"{name}, one technique alone, the weakest first:")
        page.table(("technique", "drop, points", "bytes, share"), alone)
        page.text(f"{name}, two techniques (drop in points / bytes as a share of the original's):")
        page.table(("stronger and weaker", "stages' order", "weaker first", "weaker first, then again"), pairs)
    page.write(Console())


def _explain(page: Page) -> None:
    page.text(
        "Each technique is put on all layers that can take it, and every step is calibrated anew on "
        f"{CALIBRATION_IMAGES} training images. Drops are those of the test images (360 digits, {TEST_IMAGES:,} of "
        "CIFAR-10). What a later step does to weights undoes zeros and formats, so the file of `weaker first` holds "
        "what the last step left; `then again` repeats the weaker technique at the end, which restores them. "
        "Nothing here is random but the choice of images, which is fixed. 8-bit activations are left out: their ranges "
        "come from calibration alone, so their place in the order changes nothing but what they can be put on."
    )


def _rows(group: list[Steps]) -> tuple[list[list[str]], list[list[str]]]:
    drops = {recipe: _mean(group, recipe) for recipe in dict.fromkeys(name for pair in PAIRS for name in pair)}
    ranked = sorted(drops, key=lambda recipe: drops[recipe][0])
    alone = [[recipe, f"{drops[recipe][0]:.2f}", f"{drops[recipe][1]:.3f}"] for recipe in ranked]
    pairs = []
    for first, second in PAIRS:
        stronger, weaker = sorted((first, second), key=ranked.index, reverse=True)
        cells = ["{:.2f} / {:.3f}".format(*_mean(group, first, second)), *["the same"] * 2]
        if weaker == second:
            others = ((weaker, stronger), (weaker, stronger, weaker))
            cells[1:] = ("{:.2f} / {:.3f}".format(*_mean(group, *order)) for order in others)
        pairs.append([f"{stronger}, {weaker}", *cells])
    return alone, pairs


def _mean(group: list[Steps], *recipes: str) -> Outcome:
    found = [steps.outcome(*recipes) for steps in group]
    return fmean(drop for drop, _ in found), fmean(size for _, size in found)


def _steps(name: str, data: str, weights: Path | None = None) -> Steps:
    dataset = load_dataset(data)
    model = load_model(name, weights, dataset)
    return Steps(model, samples(dataset.train, CALIBRATION_IMAGES), samples(dataset.test, TEST_IMAGES))


def _resnet() -> Steps:
    weights, data = resnet_files()
    return _steps("resnet20", data, weights)


def _in_floats(model: nn.Module) -> nn.Module:
    """Returns a copy whose weights are ordinary numbers, for the next step changes them."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if weight_format(module) is not None:
            del module.weight_format
    return model


if __name__ == "__main__":
    main()
