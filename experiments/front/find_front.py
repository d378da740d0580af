"""Finds the front of one network: `plywise pareto --help`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.agent.search.front import FrontSearch, table_front
from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.compressors.plain_values import as_number
from plywise.compressors.recipes.plan import Plan
from plywise.env.costs.devices import open_device
from plywise.env.exact_evaluator import ExactEvaluator
from plywise.env.exact_measurement import Measured
from plywise.env.execution.progress import tracked
from plywise.env.network.scheme import Scheme
from plywise.env.prices.prices import METRICS, PriceTable
from plywise.env.score.demand import Demand
from plywise.env.subject import Subject
from plywise.experiments.commands.compression_settings import CompressionSettings
from plywise.experiments.commands.study import load_both
from plywise.experiments.compress_model import load_agent, studied_aloud
from plywise.experiments.front.front_folder import FILE, PAGE, TABLE, FrontFolder, Row
from plywise.experiments.front.front_picture import Estimated
from plywise.experiments.front.picking import saved_options
from plywise.experiments.handover.alternatives import slots_of
from plywise.experiments.handover.run_folder import alone_in, check_empty, check_writable
from plywise.experiments.handover.uniform_int8 import uniform_recipe

BITS = (6, 4, 3)
"""Of the weights of the first plans, besides those that the integer kernels take; the middle one with 8-bit activations
as well."""


def find_front(settings: CompressionSettings, max_drop: float, out: Path, options: Mapping[str, Any]) -> FrontFolder:
    """Scores plans, one after the other, and renews the folder after each.

    Uniform plans come first: they need no price table, so there is something to see within a minute. A run that was
    ended goes on where it stopped, as all that was measured is kept.

    Args:
        settings: what is compressed, who helps to look (an agent, or none), budget and seed.
        max_drop: points that are worth looking at.
        out: folder to write.
        options: as the user gave them; those that say what is compressed are kept for `plywise compress --from`.

    Raises:
        PlywiseError: on anything that the user can fix, before anything is computed where possible.
    """
    most = as_number(max_drop)
    if most is None or not 0.0 < most <= 100.0:
        raise ConfigurationError(f"max_drop={max_drop!r} must be points, a number above 0 and at most 100")
    max_drop = most
    source, search = settings.source, settings.search
    kept = saved_options(options)
    check_same_front(out, kept)
    check_writable(out)
    agent = None if search.agent is None else load_agent(search.agent)
    latency = open_device(settings.device)
    network, data = load_both(source.model, source.data, source.weights, source.preprocessing, source.task)
    with alone_in(out):
        subject = studied_aloud(settings, network, data, latency)[0].subject
        judge = subject.validation.judge
        about = {
            "model": source.name,
            "data": source.data_name,
            "device": latency.device.name,
            "metric": judge.name,
            "unit": judge.unit,
            "point": judge.point,
            "original": subject.accuracy * judge.point,
            "samples": len(subject.validation),
            "seed": search.seed,
        }
        found = FrontFolder(out, kept, about, max_drop)
        for row, plan in _rows(subject, found, search.evaluations, search.seed, max_drop, agent):
            found.add(row, plan)
        found.finished = True
        found.write()
    return found


def check_same_front(out: Path, options: Mapping[str, Any]) -> None:
    """Raises ConfigurationError where a folder holds the front of something else, or other files."""
    if (out / FILE).is_file():
        try:
            before = FrontFolder.load(out).options
        except FileFormatError:
            return  # it is written anew
        if before != options:
            changed = sorted(name for name in before.keys() | options.keys() if before.get(name) != options.get(name))
            raise ConfigurationError(
                f"{out} holds the front of another run ({', '.join(changed)} differ); name another folder or delete it"
            )
    else:
        check_empty(out)


def _rows(
    subject: Subject, found: FrontFolder, budget: int, seed: int, max_drop: float, agent: RecipeAgent | None
) -> Iterator[tuple[Row, Plan]]:
    original = subject.measure(Scheme.of({"*": "identity"}).on(subject.network)[0])
    first = uniform_plans(subject)
    for plan in tracked(first, "plans with one recipe for all layers"):
        each = subject.measure(plan)
        yield _row(len(found.rows), "uniform", original, subject.accuracy - each.accuracy, each.cost), plan
    table = subject.price()
    found.estimated = Estimated(*table_front(table, max_drop)[:2])
    looking = FrontSearch(ExactEvaluator(subject, Demand(None), early=False), max_drop, agent)
    for actions in filter(None, (actions_of(table, plan) for plan in first)):
        looking.learn(actions)
    for point in tracked(looking.points(budget, seed), "plans scored", budget):
        row = _row(len(found.rows), point.found_by, original, point.outcome.drop, point.outcome.cost)
        yield row, subject.plan(point.actions)


def uniform_plans(subject: Subject) -> list[Plan]:
    """Returns plans with one number format for all layers that can take it, for which no prices are needed."""
    recipes = [uniform_recipe(subject.latency.device)]
    recipes += [f"uniform_quantization(bits={bits})" for bits in BITS]
    recipes += [f"uniform_quantization(bits={BITS[1]}) + activation_quantization"]
    return [Scheme.of({"*": recipe}).on(subject.network)[0] for recipe in recipes]


def actions_of(table: PriceTable, plan: Plan) -> tuple[int, ...] | None:
    """Returns the slots of a plan, None where a recipe of it is not on the menu or not legal."""
    slots = slots_of(table, plan)
    legal = slots is not None and all(allowed[slot] for allowed, slot in zip(table.legal, slots, strict=True))
    return slots if legal else None


def _row(number: int, found_by: str, original: Measured, drop: float, cost: Sequence[float]) -> Row:
    shares = [after / before for after, before in zip(cost, original.cost, strict=True)]
    return Row(number, found_by, drop, *shares, *cost)


def show_front(found: FrontFolder, console: Console | None = None) -> None:
    """Prints the front, one plan a line, and how to go on."""
    console = console or Console()
    about = found.about
    unit = "points lost" if about["point"] == 1.0 else f"points lost (of {about['point']:.3g} {about['unit']})"
    table = Table("plan", title=f"{about['model']} on {about['data']}, {about['device']}")
    for heading in (unit, "storage", "latency", "energy", "found by"):
        table.add_column(heading, justify="right")
    best = found.knee.number if found.shown else -1
    for row in found.shown:
        number = f"{row.number} (knee)" if row.number == best else str(row.number)
        table.add_row(number, f"{row.drop:.2f}", *(f"{getattr(row, name):.3f}" for name in METRICS), row.found_by)
    console.print(table)
    console.print(
        f"shares of the original's costs; points on {about['samples']:,} validation samples. "
        f"{len(found.rows)} plans scored. Page: {found.path / PAGE}, table: {found.path / TABLE}",
        soft_wrap=True,
    )
    console.print(
        f"hand one over: plywise compress --from {found.path} --pick N --out FOLDER, or --knee", soft_wrap=True
    )
