"""Checks and prices a plan: `plywise plan FILE --model ...`. Nothing is put together, written or scored."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from torch import nn

from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe, Stage
from plywise.compressors.structure.filter_pruning import FilterPruning
from plywise.env.arrays import Doubles
from plywise.env.costs.chains import realised_chain
from plywise.env.costs.devices import open_device
from plywise.env.execution.progress import phase, tracked
from plywise.env.network.network import Layer
from plywise.env.prices.prices import METRICS, PriceTable
from plywise.env.prices.sensitivity import MonotoneLine, output_error
from plywise.env.score.surrogate import Surrogate
from plywise.env.subject import Subject
from plywise.experiments.commands.compression_settings import CompressionSettings
from plywise.experiments.commands.study import load_both, study_network
from plywise.experiments.compress_model import (
    check_weights_run,
    read_plan,
    tell_other_network,
    tell_overridden,
    tell_refused,
)
from plywise.experiments.handover.files import told
from plywise.experiments.handover.layer_costs import costs_of, share_comments


def price_plan(settings: CompressionSettings) -> dict[str, Any]:
    """Returns what a plan costs and is expected to lose; layers are compressed one by one for their bytes and shapes.

    Args:
        settings: source, device, repair and plan are looked at.

    Returns:
        `network`, `device`; `shares` of the original's storage, latency and energy; `accuracy_drop` and its `spread`,
        points; and `layers`: recipe, costs before and after, and the drop that each causes alone.

    Raises:
        PlywiseError: where a file is no plan, or the plan does not fit the network.
    """
    source, search = settings.source, settings.search
    scheme = read_plan(search.plan)
    latency = open_device(settings.device)
    with phase(tracked, f"{source.name}: loading network and data"):
        network, data = load_both(source.model, source.data, source.weights, source.preprocessing, source.task)
    subject = study_network(
        network, source.name, data, search.seed, latency=latency, repair=settings.repair, ignored=source.ignored
    ).subject
    plan, refused = scheme.on(subject.network)
    check_weights_run(subject, plan)
    state = subject.bank.check(plan)
    tell_other_network(scheme, subject)
    tell_refused(refused)
    tell_overridden(scheme, subject)
    table = subject.price()
    before = {layer.name: subject.network.modules[layer.name] for layer in subject.layers}
    each = tracked(list(plan), f"{subject.network.name}: pricing layers")
    after = {name: subject.bank.entry(name, plan[name], state) for name in each}
    drops, on_table = layer_drops(subject, table, plan)
    (drop,), (spread,) = Surrogate(table).expected(drops[None])
    costs = {"before": costs_of(subject, before), "after": costs_of(subject, after)}
    rows = zip(plan, costs["before"], costs["after"], drops, on_table, strict=True)
    return {
        "network": subject.network.name,
        "device": subject.latency.device.name,
        "shares": _shares(subject, table, before, after, costs),
        "accuracy_drop": float(drop),
        "spread": float(spread),
        "layers": [
            {
                "name": name,
                "recipe": str(plan[name]),
                "before": old,
                "after": new,
                "accuracy_drop": float(lost),
                "on_price_list": known,
                "refused": refused.get(name),
            }
            for name, old, new, lost, known in rows
        ],
    }


def layer_drops(subject: Subject, table: PriceTable, plan: Plan) -> tuple[Doubles, list[bool]]:
    """Returns the points that each layer's recipe loses alone, `(L,)`, and which of them are on the price list.

    Others are read off a line over the relative output error, through the layer's recipes on the list that prune and
    round activations alike; through all of them where none does.

    Args:
        subject: the network under study.
        table: its prices.
        plan: a recipe for each layer.
    """
    drops, known = np.zeros(table.num_layers), [False] * table.num_layers
    for row, layer in enumerate(subject.layers):
        recipe, menu = plan[layer.name], table.recipes[row]
        known[row] = str(recipe) in menu
        drops[row] = table.drop[row, menu.index(str(recipe))] if known[row] else _estimated(subject, table, row, recipe)
    return drops, known


def _estimated(subject: Subject, table: PriceTable, row: int, recipe: Recipe) -> float:
    layer: Layer = subject.layers[row]
    others = [Recipe.parse(written) for written in table.recipes[row]]
    alike = [slot for slot, other in enumerate(others) if _kind(other) == _kind(recipe) and other.techniques]
    slots = alike or [slot for slot, other in enumerate(others) if other.techniques]
    slots = sorted(slots, key=lambda slot: float(table.output_error[row, slot]))
    line = MonotoneLine(table.output_error[row, slots].tolist(), table.drop[row, slots].tolist())
    return line(output_error(subject.bank, layer, recipe.without(Stage.ACTIVATIONS)))


def _kind(recipe: Recipe) -> tuple[str, bool]:
    cut = recipe.at(Stage.STRUCTURE)
    pruning = str(cut) if isinstance(cut, FilterPruning) else ""
    return pruning, recipe.at(Stage.ACTIVATIONS) is not None


def _shares(
    subject: Subject,
    table: PriceTable,
    before: Mapping[str, nn.Module],
    after: Mapping[str, nn.Module],
    costs: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, float | None]:
    """Returns what is left of the original's bytes, milliseconds and millijoules."""
    chains = [
        {layer.name: realised_chain(each[layer.name], layer) for layer in subject.layers} for each in (before, after)
    ]
    was, now = subject.whole.predicted(chains)
    storage = float(table.fixed[0]) + sum(row["storage_bytes"] for row in costs["after"])
    old, new = (float(table.fixed[2]) + sum(row["energy_mj"] for row in costs[when]) for when in ("before", "after"))
    shares = storage / float(table.original[0]), float(now / was), new / old
    return dict(zip(METRICS, map(told, shares), strict=True))


def show_plan_price(found: Mapping[str, Any]) -> None:
    """Prints what `price_plan` returns: two lines a layer, then the whole plan."""
    console, layers = Console(), found["layers"]
    costs = {when: [layer[when] for layer in layers] for when in ("before", "after")}
    comments = share_comments([layer["name"] for layer in layers], costs)
    for layer in layers:
        about = "about " if not layer["on_price_list"] else ""
        line = (
            f"{layer['name']}: {comments[layer['name']]}, drop {about}{layer['accuracy_drop']:.2f}\n  {layer['recipe']}"
        )
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    shares = ", ".join(f"{name} {'-' if share is None else f'{share:.3f}'}" for name, share in found["shares"].items())
    console.print(
        f"\nThe plan fits {found['network']}: {shares} of the original's on {found['device']}; estimated drop "
        f"{found['accuracy_drop']:.2f} +- {found['spread']:.2f} points.",
        markup=False,
        highlight=False,
    )
    console.print(
        "bytes, ms: shares of those of the original's layers, before -> after. drop: points that the recipe loses alone"
        + (
            "; about: it is not on the price list, so that is read off its output error"
            if not all(layer["on_price_list"] for layer in layers)
            else ""
        )
        + ". Nothing was put together: 'plywise compress --plan' does that, and scores it.",
        markup=False,
        highlight=False,
    )
