"""What fine-tuning wins back on ResNet-20: `python -m plywise.experiments.studies.recovery_study`.

Three plans that lose much, each trained on a part of the training images with labels alone and with the original as the
teacher. An interrupted run goes on where it stopped.
"""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from plywise.env.execution.progress import Item, tracked
from plywise.env.recovery.recovery import recover
from plywise.env.recovery.recovery_settings import MODES, USUAL_EPOCHS, RecoverySettings
from plywise.env.recovery.training_data import AugmentedImages
from plywise.experiments.commands.study import Study, random_part, study
from plywise.experiments.data.dataset import Dataset
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.workbench.kept_runs import kept_run
from plywise.experiments.workbench.results_page import Page
from plywise.experiments.workbench.study_files import resnet_files
from plywise.experiments.workbench.technique_rows import HALF_PRUNED, plan_of

CASES = {
    "2 bits": "uniform_quantization(bits=2, scheme=affine)",
    "70 % zeros, 3 bits": "magnitude_pruning(sparsity=0.7) + uniform_quantization(bits=3)",
    "half the inner channels": HALF_PRUNED,
}
IMAGES, SEEDS = 10_000, (0, 1)


class Won(NamedTuple):
    """What one run gave.

    Attributes:
        before, after: accuracy on the test images, percent.
        accuracies: on the validation images, before the first epoch and after each, percent.
        seconds: of the processor, for one epoch.
    """

    before: float
    after: float
    accuracies: list[float]
    seconds: float


Rows = dict[tuple[str, str, int], Won]
"""By plan, mode and seed."""


class Stopwatch:
    """A progress bar that also knows how long a step takes, whether or not the run began before.

    Attributes:
        seconds: of the processor, for each step.
    """

    seconds = 0.0

    def __call__(self, items: Iterable[Item], what: str, count: int) -> Iterator[Item]:
        """Yields `items`."""
        started = time.process_time()
        yield from tracked(items, what, count)
        self.seconds = (time.process_time() - started) / max(count, 1)


def main(folder: Path = Path("runs/recovery_study"), images: int = IMAGES, epochs: int = USUAL_EPOCHS) -> None:
    """Trains seed after seed, and writes the page anew after each run.

    Args:
        folder: of what an interrupted run has found.
        images: training images.
        epochs: passes over them.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    weights, data = resnet_files()
    dataset = load_dataset(data)
    studied = study("resnet20", dataset, weights)
    dataset = dataclasses.replace(dataset, train=random_part(dataset.train, images))
    rows: Rows = {}
    for seed, name, mode in itertools.product(SEEDS, CASES, MODES):
        settings = RecoverySettings(mode, epochs, seed=seed)
        rows[name, mode, seed] = trained(studied, dataset, name, settings, folder)
        page = Page(
            "recovery_study", "python -m plywise.experiments.studies.recovery_study", time.perf_counter() - started
        )
        _explain(page, studied, dataset, epochs)
        _tables(page, rows, epochs)
        page.write(Console())


def trained(studied: Study, dataset: Dataset, name: str, settings: RecoverySettings, folder: Path) -> Won:
    """Returns what one run gives; an earlier run that was asked for the same with the same code is gone on with.

    Args:
        studied: the network and the test images.
        dataset: its training split is trained on.
        name: of the plan, in `CASES`.
        settings: how to train.
        folder: where figures and states of runs are kept.
    """
    subject, test = studied.subject, studied.test
    asked = [subject.key, CASES[name], len(dataset.train), test.digest(), settings.as_json()]

    def run(state: Path) -> dict[str, Any]:
        plan, _ = plan_of(subject.network, CASES[name])
        before = test.score(subject.bank.stitch(plan).model.eval()).value
        watch = Stopwatch()
        recovered = recover(subject, plan, AugmentedImages(dataset.train, dataset.augmentation), settings, state, watch)
        seconds = watch.seconds * math.ceil(len(dataset.train) / settings.batch_size)
        after = test.score(recovered.model).value
        return Won(before, after, list(recovered.accuracies), seconds)._asdict()

    return Won(**kept_run(folder, asked, run))


def _explain(page: Page, studied: Study, dataset: Dataset, epochs: int) -> None:
    original = studied.test.score(studied.subject.network.model).value
    page.text(
        f"ResNet-20 on CIFAR-10 (JPEG copy), original {original:.2f} % on the {len(studied.test):,} test images. "
        f"{epochs} epochs over {len(dataset.train):,} training images with the settings that `--recover` uses; the "
        f"epoch is chosen on {len(studied.subject.validation):,} validation images, of which the original has "
        f"{studied.subject.accuracy:.2f} % because it was trained on them. Before: closed-form repair alone. A seed "
        "decides the order of the images and their distortions. Seconds: of the processor, one thread."
    )


def _tables(page: Page, rows: Rows, epochs: int) -> None:
    lines = []
    for name, mode in itertools.product(CASES, MODES):
        runs = {seed: rows[name, mode, seed] for seed in SEEDS if (name, mode, seed) in rows}
        if not runs:
            continue
        before = runs[SEEDS[0]].before
        won = statistics.fmean(run.after for run in runs.values()) - before
        seconds = statistics.fmean(run.seconds for run in runs.values())
        after = (f"{runs[seed].after:.2f}" if seed in runs else "not run" for seed in SEEDS)
        lines.append((f"{name}: {mode}", f"{before:.2f}", *after, f"{won:+.2f}", f"{seconds:.0f}"))
    page.text("Accuracy on the test images, percent:")
    page.table(("plan", "before", *(f"seed {seed}" for seed in SEEDS), "won, mean", "seconds an epoch"), lines)
    page.text("On the validation images:")
    page.table(
        ("plan", "before", *(f"epoch {epoch + 1}" for epoch in range(epochs))),
        [
            (f"{name}: {mode}, seed {seed}", *(f"{each:.2f}" for each in run.accuracies))
            for (name, mode, seed), run in rows.items()
        ],
    )


if __name__ == "__main__":
    main()
