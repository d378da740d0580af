"""Whether the score foretells what a user gets in the end: `python -m plywise.experiments.fidelity_study`.

Random plans are scored without training, with and without repair, estimated by the surrogate, and fine-tuned. An
interrupted run goes on where it stopped.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from scipy.stats import norm, spearmanr

from plywise.env.prices import Ints, PriceTable
from plywise.env.recovery import recover
from plywise.env.recovery_settings import RecoverySettings
from plywise.env.surrogate import Surrogate
from plywise.experiments.dataset import Dataset
from plywise.experiments.datasets import load_dataset
from plywise.experiments.kept_runs import kept_run
from plywise.experiments.progress import tracked
from plywise.experiments.resnet_files import resnet_files
from plywise.experiments.results_page import Page
from plywise.experiments.study import Study, random_part, study

DIGITS = ("digits-resnet-a", "digits-vit", "digits-mobilenet")
PLANS, RESNET_PLANS, IMAGES = 40, 40, 10_000
CANDIDATES = 50
"""Random plans for each of those that are spread evenly."""
INTERVAL = 0.9
"""How many of the drops should lie within the surrogate's interval."""


class Found(NamedTuple):
    """What is known of one plan.

    Attributes:
        actions: one slot for each layer.
        scored, bare: accuracy on the validation images without training, with and without repair, percent.
        tuned: accuracy on the test images after fine-tuning, percent.
        seconds: that fine-tuning took.
    """

    actions: list[int]
    scored: float
    bare: float
    tuned: float
    seconds: float


def main(folder: Path = Path("runs/fidelity_study"), plans: int = RESNET_PLANS, images: int = IMAGES) -> None:
    """Looks at all plans of one network after the other, and writes the page anew after each network.

    Args:
        folder: of what an interrupted run has found.
        plans: of ResNet-20; the digits networks have `PLANS` each.
        images: training images that ResNet-20 is fine-tuned on, at most.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    networks: dict[str, tuple[Study, int, list[Found]]] = {}
    for studied, dataset, drawn, how in _cases(plans):
        dataset = dataclasses.replace(dataset, train=random_part(dataset.train, images))
        name = f"{studied.subject.network.name}{how}"
        found = [look_at(studied, dataset, plan, folder) for plan in tracked(drawn, f"{name}: plans", len(drawn))]
        networks[name] = studied, len(dataset.train), found
        write_page(networks, time.perf_counter() - started)


def _cases(plans: int) -> Iterator[tuple[Study, Dataset, Ints, str]]:
    """Yields a network, its data, plans, and how they were drawn where it was not at random."""
    data = load_dataset("digits")
    for name in DIGITS:
        studied = study(name, data)
        yield studied, data, random_plans(studied.subject.table, PLANS), ""
        yield studied, data, spread_plans(studied.subject.table, PLANS), ", spread"
    weights, images = resnet_files()
    dataset = load_dataset(images)
    studied = study("resnet20", dataset, weights)
    yield studied, dataset, random_plans(studied.subject.table, plans), ""


def random_plans(table: PriceTable, count: int, seed: int = 0) -> Ints:
    """Returns plans `(count, L)` over the whole range: a random share of the layers takes a random recipe each."""
    generator = np.random.default_rng(seed)
    drawn = np.array([[generator.choice(np.flatnonzero(legal)) for legal in table.legal] for _ in range(count)])
    changed = generator.random(drawn.shape) < generator.random((count, 1))
    plans: Ints = np.where(changed, drawn, 0).astype(np.int64)
    return plans


def spread_plans(table: PriceTable, count: int) -> Ints:
    """Returns those of many random plans `(count, L)` whose estimated drops are spread most evenly.

    Of plain random plans, many lose next to nothing; in what order these come after fine-tuning is chance.
    """
    plans = np.unique(random_plans(table, CANDIDATES * count, seed=1), axis=0)
    drops = Surrogate(table).estimate(plans)[1]
    free, picked = np.ones(len(plans), bool), []
    for wanted in np.linspace(drops.min(), drops.max(), count):
        picked.append(int(np.where(free, np.abs(drops - wanted), np.inf).argmin()))
        free[picked[-1]] = False
    return plans[picked]


def look_at(studied: Study, dataset: Dataset, actions: Ints, folder: Path) -> Found:
    """Returns what is known of a plan; an earlier run with the same code is gone on with."""
    subject, settings = studied.subject, RecoverySettings()
    plan = subject.plan(actions.tolist())
    asked = [subject.key, len(dataset.train), settings.as_json(), list(map(str, plan.values()))]

    def run(state: Path) -> dict[str, Any]:
        bare = subject.validation.accuracy(subject.validation.logits(subject.bank.stitch(plan, 0).model))
        started = time.process_time()
        recovered = recover(subject, plan, dataset.train, dataset.augmentation, settings, state)
        seconds = time.process_time() - started
        tuned = studied.test.accuracy(studied.test.logits(recovered.model))
        return Found(actions.tolist(), recovered.accuracies[0], bare, tuned, seconds)._asdict()

    return Found(**kept_run(folder, asked, run))


def write_page(networks: dict[str, tuple[Study, int, list[Found]]], seconds: float) -> None:
    """Prints the tables and writes them below `experiments/results`."""
    page = Page("fidelity_study", "python -m plywise.experiments.fidelity_study", seconds)
    page.text(
        "Random plans: a random share of the layers takes a random recipe of its menu each. Spread: of "
        f"{CANDIDATES * PLANS:,} such plans, {PLANS} whose estimated drops lie evenly between the least and the "
        "largest. Scored: accuracy on the "
        "validation images without training, as plans are scored. Tuned: accuracy on the test images after "
        f"{RecoverySettings().epochs} epochs of `--recover finetune` over a part of the training images. Spearman's "
        "rank correlations between them, and of the surrogate's estimate, which has seen none of the plans, with the "
        "score. Interval: how many of the scored drops lie in the surrogate's interval of "
        f"{100 * INTERVAL:.0f} %, and in that of a surrogate that learns from one plan after the other."
    )
    rows = {name: _row(studied, found) for name, (studied, _, found) in networks.items()}
    page.table(
        ("network", "plans", "images trained on", "seconds a plan", "scored, percent", "tuned, percent"),
        [(name, str(len(found)), f"{images:,}", *rows[name][:3]) for name, (_, images, found) in networks.items()],
    )
    page.table(
        ("network", "scored, tuned", "without repair, tuned", "surrogate, scored", "in interval", "while learning"),
        [(name, *row[3:]) for name, row in rows.items()],
    )
    page.write(Console())


def _row(studied: Study, found: list[Found]) -> tuple[str, ...]:
    scored, bare, tuned = (np.array([getattr(each, field) for each in found]) for field in ("scored", "bare", "tuned"))
    plans = np.array([each.actions for each in found])
    drops = studied.subject.accuracy - scored
    _, expected, spread = Surrogate(studied.subject.table).estimate(plans)
    fixed = np.abs(drops - expected) <= _reach() * spread
    return (
        f"{statistics.fmean(each.seconds for each in found):.0f}",
        f"{scored.min():.1f} to {scored.max():.1f}",
        f"{tuned.min():.1f} to {tuned.max():.1f}",
        f"{spearmanr(scored, tuned).statistic:.2f}",
        f"{spearmanr(bare, tuned).statistic:.2f}",
        f"{spearmanr(-expected, scored).statistic:.2f}",
        f"{100 * fixed.mean():.0f} %",
        f"{100 * _inside_while_learning(studied.subject.table, plans, drops):.0f} %",
    )


def _inside_while_learning(table: PriceTable, plans: Ints, drops: np.ndarray) -> float:
    surrogate, inside = Surrogate(table), []
    for plan, drop in zip(plans, drops, strict=True):
        _, (expected,), (spread,) = surrogate.estimate(plan[None])
        inside.append(abs(drop - expected) <= _reach() * spread)
        surrogate.observe(plan.tolist(), drop)
    return float(np.mean(inside))


def _reach() -> float:
    return float(norm.ppf(0.5 + INTERVAL / 2))


if __name__ == "__main__":
    main()
