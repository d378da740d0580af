"""Whether the score predicts what a user gets in the end: `python -m plywise.experiments.studies.fidelity_study`.

Random plans are scored without training, with and without repair, estimated by the surrogate, and fine-tuned. An
interrupted run goes on where it stopped.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from scipy.stats import norm, spearmanr
from torch import nn
from torch.nn import functional as F

from plywise.compressors.recipes.plan import Plan
from plywise.env.arrays import Bools, Floats, Ints
from plywise.env.bank.repair import FULL, NONE, Repair
from plywise.env.execution.progress import tracked
from plywise.env.prices.prices import PriceTable
from plywise.env.recovery.recovery import recover
from plywise.env.recovery.recovery_settings import RecoverySettings
from plywise.env.recovery.training_data import AugmentedImages
from plywise.env.score.surrogate import Surrogate
from plywise.env.task.samples import Samples
from plywise.experiments.commands.study import Study, random_part, study
from plywise.experiments.data.dataset import Dataset, Split
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.data.splits import channel_moments
from plywise.experiments.workbench.kept_runs import kept_run
from plywise.experiments.workbench.plots import Points, against
from plywise.experiments.workbench.results_page import Page
from plywise.experiments.workbench.study_files import mnist_files, resnet_files

DIGITS = ("digits-resnet-a", "digits-vit", "digits-mobilenet")
PLANS, RESNET_PLANS, IMAGES = 40, 40, 10_000
SEEDS = 3
"""Times that a plan of a digits network is fine-tuned, with other orders and distortions of the images."""

HALVINGS = 200
CANDIDATES = 50
"""Random plans for each of those that are spread evenly."""
REPAIRS = {
    "none": NONE,
    "means": Repair(deviations=False, least_squares=False),
    "means and deviations": Repair(least_squares=False),
    "least squares": Repair(means=False, deviations=False),
    "all": FULL,
}
"""What of the repair is done, to see what each part of it is worth."""
INTERVAL = 0.9
"""How many of the drops should lie within the surrogate's interval."""
REACH = float(norm.ppf(0.5 + INTERVAL / 2))
"""Half of the interval, in standard deviations."""


class Found(NamedTuple):
    """What is known of one plan.

    Attributes:
        actions: one slot for each layer.
        scored: accuracy on the validation images without training, percent.
        repaired: the same with only some of the repair, by what is done.
        tuned: accuracy on the test images after fine-tuning, percent, with each seed.
        seconds: that fine-tuning took once.
        missed: validation images that the scored network gets wrong.
        missed_tuned: test images that the fine-tuned one gets wrong, with each seed.
    """

    actions: list[int]
    scored: float
    repaired: dict[str, float]
    tuned: list[float]
    seconds: float
    missed: list[int]
    missed_tuned: list[list[int]]


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
    for studied, dataset, drawn, suffix, seeds in _cases(plans):
        dataset = dataclasses.replace(dataset, train=random_part(dataset.train, images))
        name = f"{studied.subject.network.name}{suffix}"
        every = tracked(drawn, f"{name}: plans", len(drawn))
        found = [look_at(studied, dataset, plan, folder, seeds) for plan in every]
        networks[name] = studied, len(dataset.train), found
        write_page(networks, time.perf_counter() - started)


def _cases(plans: int) -> Iterator[tuple[Study, Dataset, Ints, str, int]]:
    """Yields a network, its data, plans, what is special about both, and how often each plan is tuned."""
    many = shrunk_mnist()
    for name in DIGITS:
        studied = study(name, many)
        yield studied, many, random_plans(studied.subject.price(), PLANS), ", MNIST", 1
    data = load_dataset("digits")
    for name in DIGITS:
        studied = study(name, data)
        yield studied, data, random_plans(studied.subject.price(), PLANS), "", SEEDS
        yield studied, data, spread_plans(studied.subject.price(), PLANS), ", spread", SEEDS
    weights, images = resnet_files()
    dataset = load_dataset(images)
    studied = study("resnet20", dataset, weights)
    yield studied, dataset, random_plans(studied.subject.price(), plans), "", 1


def shrunk_mnist() -> Dataset:
    """Returns MNIST in the 8x8 pixels that networks for the digits take.

    It has images enough to tell plans apart by: 10,000 to train on and 10,000 to test on, where the digits have 1,077
    and 360.
    """
    whole = load_dataset(mnist_files())
    parts = (random_part(whole.train, IMAGES), whole.validation, whole.test)
    small = [F.avg_pool2d(F.pad(part.images.float(), (2, 2, 2, 2)), 4).round().byte() for part in parts]
    mean, std = channel_moments(small[0])
    train, validation, test = (Split(images, part.labels, mean, std) for images, part in zip(small, parts, strict=True))
    return dataclasses.replace(whole, train=train, validation=validation, test=test)


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


def look_at(studied: Study, dataset: Dataset, actions: Ints, folder: Path, seeds: int = 1) -> Found:
    """Returns what is known of a plan; an earlier run with the same code is gone on with."""
    subject = studied.subject
    plan = subject.plan(actions.tolist())
    tuned = [_tuned(studied, dataset, plan, RecoverySettings(seed=seed), folder) for seed in range(seeds)]

    def score(_: Path) -> dict[str, Any]:
        return {
            name: _missed(subject.validation, subject.bank.stitch(plan, repair).model)
            for name, repair in REPAIRS.items()
        }

    scored = kept_run(folder, [subject.key, "scored", list(map(str, plan.values()))], score)
    missed = scored["all"]
    return Found(
        actions.tolist(),
        _right(missed, subject.validation),
        {name: _right(wrong, subject.validation) for name, wrong in scored.items()},
        [_right(wrong, studied.test) for wrong, _ in tuned],
        statistics.fmean(seconds for _, seconds in tuned),
        missed,
        [wrong for wrong, _ in tuned],
    )


def _tuned(
    studied: Study, dataset: Dataset, plan: Plan, settings: RecoverySettings, folder: Path
) -> tuple[list[int], float]:
    """Returns which test images a plan gets wrong once it is fine-tuned, and the seconds that this took."""
    asked = [studied.subject.key, len(dataset.train), settings.as_json(), list(map(str, plan.values()))]

    training = AugmentedImages(dataset.train, dataset.augmentation)

    def run(state: Path) -> dict[str, Any]:
        started = time.process_time()
        recovered = recover(studied.subject, plan, training, settings, state)
        return {"seconds": time.process_time() - started, "missed": _missed(studied.test, recovered.model)}

    found = kept_run(folder, asked, run)
    return found["missed"], found["seconds"]


def _missed(samples: Samples, model: nn.Module) -> list[int]:
    """Returns the places of the samples that a network gets wrong."""
    values = samples.score(model).values
    assert values is not None
    found: list[int] = (values == 0).nonzero().flatten().tolist()
    return found


def _right(missed: list[int], samples: Samples) -> float:
    return 100.0 * (1.0 - len(missed) / len(samples))


def write_page(networks: dict[str, tuple[Study, int, list[Found]]], seconds: float) -> None:
    """Prints the tables and writes them below `experiments/results`."""
    page = Page("fidelity_study", "python -m plywise.experiments.studies.fidelity_study", seconds)
    page.text(
        f"MNIST: networks for the digits, trained on {IMAGES:,} images of MNIST shrunk to their 8x8 pixels; it has "
        "images enough to tell plans apart by. Random plans: a random share of the layers takes a random recipe of its "
        f"menu each. Spread: of {CANDIDATES * PLANS:,} such plans, {PLANS} whose estimated drops lie evenly between "
        "the least and the largest. Scored: accuracy on the validation images without training, as plans are scored. "
        "Tuned: accuracy on "
        f"the test images after {RecoverySettings().epochs} epochs of `--recover finetune` over a part of the training "
        f"images; plans of the digits are tuned with {SEEDS} seeds each, and the mean counts. Spearman's rank "
        "correlations between them, and of the surrogate's estimate, which has seen none of the plans, with the score. "
        "Attainable: what images so few allow at most, from how well each of the two accuracies agrees with itself on "
        "random halves of its images (brought to all of them by the formula of Spearman and Brown, 1910). Interval: "
        "how many of the scored drops lie in the surrogate's interval of "
        f"{100 * INTERVAL:.0f} %, and in that of a surrogate that learns from one plan after the other."
    )
    estimates = {name: _estimates(studied, found) for name, (studied, _, found) in networks.items()}
    rows = {name: _row(studied, found, estimates[name]) for name, (studied, _, found) in networks.items()}
    page.table(
        ("network", "plans", "images trained on", "seconds a plan", "scored, percent", "tuned, percent"),
        [(name, str(len(found)), f"{images:,}", *rows[name][:3]) for name, (_, images, found) in networks.items()],
    )
    page.figure(
        against(
            {name: [Points(*_accuracies(found))] for name, (_, _, found) in networks.items()},
            "scored, percent",
            "tuned, percent",
        ),
        "Each plan's accuracy as it is scored, without training, and after fine-tuning:",
    )
    within = {name: _within(studied, found) for name, (studied, _, found) in networks.items()}
    page.table(
        ("network", "scored, tuned", "attainable", "surrogate, scored", "in interval", "while learning"),
        [(name, *rows[name][3:], *(f"{100 * share:.0f} %" for share in each.mean(1))) for name, each in within.items()],
    )
    prior, learning = 100 * np.concatenate(list(within.values()), axis=1).mean(1)
    page.text(f"Of all plans together, {prior:.0f} % lie in the interval, and while it learns {learning:.0f} %.")
    page.figure(
        against(
            {name: [points] for name, points in estimates.items()},
            "scored, points lost",
            "predicted, points lost",
            equal=True,
        ),
        "What the surrogate, which has seen none of the plans, predicts of each, with its interval of "
        f"{100 * INTERVAL:.0f} %; on the line it is right:",
    )
    page.text(
        "What each part of the repair is worth: the plans' mean accuracy as they are scored, percent, where only this "
        "much of it is done, and its rank correlation with the accuracy after fine-tuning."
    )
    page.table(
        ("network", *REPAIRS),
        [(name, *_ablation(found)) for name, (_, _, found) in networks.items()],
    )
    page.write(Console())


def _row(studied: Study, found: list[Found], estimates: Points) -> tuple[str, ...]:
    scored, tuned = _accuracies(found)
    return (
        f"{statistics.fmean(each.seconds for each in found):.0f}",
        f"{scored.min():.1f} to {scored.max():.1f}",
        f"{tuned.min():.1f} to {tuned.max():.1f}",
        f"{spearmanr(scored, tuned).statistic:.2f}",
        f"{attainable(studied, found):.2f}",
        f"{spearmanr(estimates.y, estimates.x).statistic:.2f}",
    )


def _accuracies(found: list[Found]) -> tuple[Floats, Floats]:
    """Returns the plans' accuracies as they are scored and after fine-tuning, percent."""
    return np.array([each.scored for each in found]), np.array([statistics.fmean(each.tuned) for each in found])


def _estimates(studied: Study, found: list[Found]) -> Points:
    """Returns the points lost as scored and as the surrogate predicts them, which has seen none of the plans."""
    _, expected, spread = Surrogate(studied.subject.price()).estimate(np.array([each.actions for each in found]))
    return Points(studied.subject.accuracy - _accuracies(found)[0], expected, REACH * spread)


def _ablation(found: list[Found]) -> list[str]:
    """Returns for each of `REPAIRS` the mean accuracy and its rank correlation with that after fine-tuning."""
    tuned = [statistics.fmean(each.tuned) for each in found]
    cells = []
    for name in REPAIRS:
        scored = [each.repaired[name] for each in found]
        cells.append(f"{statistics.fmean(scored):.1f} ({spearmanr(scored, tuned).statistic:.2f})")
    return cells


def attainable(studied: Study, found: Sequence[Found]) -> float:
    """Returns the rank correlation that accuracies have which differ by nothing but the images counted on."""
    scored = _hits([[each.missed] for each in found], len(studied.subject.validation))
    tuned = _hits([each.missed_tuned for each in found], len(studied.test))
    return float(np.sqrt(reliability(scored) * reliability(tuned)))


def _hits(missed: Sequence[list[list[int]]], images: int) -> Floats:
    """Returns how often each plan gets each image right, `(plans, images)`."""
    hits = np.ones((len(missed), images), np.float32)
    for row, runs in zip(hits, missed, strict=True):
        for wrong in runs:
            row[wrong] -= 1.0 / len(runs)
    return hits


def reliability(hits: Floats) -> float:
    """Returns the rank correlation of accuracies with those on as many other images, from random halves."""
    generator, half = np.random.default_rng(0), hits.shape[1] // 2
    orders = [generator.permutation(hits.shape[1]) for _ in range(HALVINGS)]
    both = ((hits[:, order[:half]].mean(1), hits[:, order[half:]].mean(1)) for order in orders)
    agreement = statistics.fmean(float(spearmanr(*pair).statistic) for pair in both)
    return 2.0 * agreement / (1.0 + agreement)


def _within(studied: Study, found: list[Found]) -> Bools:
    """Returns whether drops lie within the interval, of a surrogate as it is and of one that learns, `(2, plans)`."""
    table, inside = studied.subject.price(), []
    prior, learning = Surrogate(table), Surrogate(table)
    for each in found:
        drop, estimates = studied.subject.accuracy - each.scored, []
        for surrogate in (prior, learning):
            _, (expected,), (spread,) = surrogate.estimate(np.array([each.actions]))
            estimates.append(abs(drop - expected) <= REACH * spread)
        inside.append(estimates)
        learning.observe(each.actions, drop)
    return np.array(inside).T


if __name__ == "__main__":
    main()
