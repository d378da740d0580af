"""What a network is made of and what its layers cost on this machine."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from plywise.compressors.errors import ConfigurationError
from plywise.env.costs.device import DECLARED, Device
from plywise.env.costs.device_file import write_questions
from plywise.env.costs.devices import open_device
from plywise.env.execution.progress import phase, tracked
from plywise.env.network.menu import catalogue, legal_recipes
from plywise.env.prices.pricing import Pricer
from plywise.env.subject import Subject
from plywise.experiments.commands.near_chance import chance_warning, tell
from plywise.experiments.commands.study import load_both, study_network, trained_here
from plywise.experiments.commands.usual_preprocessing import preprocessing_warning
from plywise.experiments.data.dataset import Dataset
from plywise.experiments.data.preprocessing import NOTHING_GIVEN, Preprocessing

HEADINGS = ("layer", "input", "output", "macs", "weights", "fp32 ms", "int8 ms", "recipes", "channels")
GAP = 2
"""Blanks between two columns."""

FIXED = "fixed"
"""What channels of a layer are that can neither be cut nor follow others."""


def profile_model(
    model: str,
    data: str | None,
    weights: Path | None = None,
    device: str | None = None,
    ask: Path | None = None,
    preprocessing: Preprocessing = NOTHING_GIVEN,
    task: str | None = None,
) -> dict[str, Any]:
    """Returns what each layer is: shapes, macs, weights, latency in float and in integers, recipes, what is pruned.

    Args:
        model, data, weights: as for `compress_model`.
        device: as for `compress_model`.
        ask: where to write the archive that measures the network's layers on another machine; None for nowhere.
        preprocessing: as for `load_dataset`.
        task: as for `compress_model`.

    Raises:
        PlywiseError: if the network or the data are not usable, or the archive cannot be written.
    """
    if ask is not None and (ask.is_dir() or not os.access(ask.parent, os.W_OK)):
        raise ConfigurationError(f"--ask {ask}: name a file in a folder that is there and may be written to")
    latencies = open_device(device)
    with phase(tracked, f"{model}: loading network and data"):
        loaded, found = load_both(model, data, weights, preprocessing, task)
    subject = study_network(loaded, model, found, latency=latencies).subject
    if isinstance(found, Dataset):
        if not trained_here(model, weights):
            tell(preprocessing_warning(subject.network.original, found))
        tell(chance_warning(subject.accuracy, found))
    network, latency = subject.network, subject.latency
    asked = latency.device if latency.device.is_here else Device.here()  # how questions are run on the target
    if ask is not None:
        write_questions(Pricer(subject.bank, subject.whole).every_chain(), ask, asked.execution, asked.batch)
    chains = [network.operations[layer.name] for layer in network.layers]
    integers = [tuple(replace(operation, integer=True) for operation in chain) for chain in chains]
    plain, whole = latency.milliseconds(chains), latency.milliseconds(integers)
    if ask is not None:
        print(
            f"written to {ask} ({asked.running}); on the target, with numpy and onnxruntime: "
            f"python3 {ask.name} device.json"
        )
    return {
        "model": model,
        "device": latency.device.name,
        "latency": f"{_how(latency.device)}; {latency.source_of(chains)}",
        "priced": subject.is_priced(),
        "catalogue": len(catalogue()),
        "layers": [
            {
                "name": layer.name,
                "type": type(network.modules[layer.name]).__name__,
                "input": list(layer.input_shape),
                "output": list(layer.output_shape),
                "macs": network.macs[layer.name],
                "weights": network.modules[layer.name].get_parameter("weight").numel(),
                "fp32_ms": float(plain[row]),
                "int8_ms": float(whole[row]),
                **_choices(subject, row),
                "channels": FIXED if layer.uncut else "decides" if layer.leads else "follows",
                "reason": layer.uncut,
            }
            for row, layer in enumerate(network.layers)
        ],
        "skipped": dict(network.skipped),
    }


def show_profile(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints what `profile_model` returns: a line a layer, and names that do not fit beside their figures above them.

    Names are never cut, for plans need them; where nobody looks at a terminal, lines are as long as they have to be.

    Args:
        found: the figures.
        console: to print on; that of the standard output where None.
    """
    console = console or Console()
    layers = found["layers"]
    rows = [_cells(layer) for layer in layers]
    sums = {key: sum(layer[key] for layer in layers) for key in ("macs", "weights", "fp32_ms", "int8_ms")}
    rows.append(_cells({"name": "sum", "input": (), "output": (), "channels": "", **sums}))
    widths = [max(len(row[column]) for row in (HEADINGS, *rows)) for column in range(len(HEADINGS))]
    figures = sum(widths[1:]) + GAP * (len(widths) - 1)
    if console.is_terminal:
        widths[0] = min(widths[0], max(console.width - figures, len(HEADINGS[0])))

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)

    say(f"{found['model']} on {found['device']} ({found['latency']})")
    for name, *cells in (HEADINGS, *rows):
        beside = name if len(name) <= widths[0] else ""
        if not beside:
            console.print(name, markup=False, highlight=False, soft_wrap=True)
        aligned = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        line = (" " * GAP).join((f"{beside:<{widths[0]}}", *aligned))
        console.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)
    say("")
    say("ms: latency of the layers one by one")
    say(
        f"recipes: how many of the {found['catalogue']} in the catalogue a layer can take, and how many of these are "
        "offered, as no other of its kind is at least as good in every price"
        + ("" if found["priced"] else "; ?: not priced yet, 'plywise compress' does that")
    )
    say("channels: of layers that share them, the first one decides which are cut and the others follow")
    for reason, names in _by_reason(layers):
        say(f"{FIXED}: {', '.join(names)}: {reason}")
    for name, reason in found["skipped"].items():
        say(f"left as it is: {name}: {reason}")


def _cells(layer: Mapping[str, Any]) -> tuple[str, ...]:
    offered = "?" if layer.get("offered") is None else layer["offered"]
    return (
        layer["name"],
        "x".join(map(str, layer["input"])),
        "x".join(map(str, layer["output"])),
        _short(layer["macs"]),
        _short(layer["weights"]),
        f"{layer['fp32_ms']:.4f}",
        f"{layer['int8_ms']:.4f}",
        f"{layer['legal']}/{offered}" if "legal" in layer else "",
        layer["channels"],
    )


def _short(count: int) -> str:
    """Returns a count with three digits, such as 14.2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}" if count < 999.5 * size else f"{count / size:.0f}{unit}"
    return str(count)


def _by_reason(layers: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for layer in layers:
        if layer["reason"]:
            found.setdefault(layer["reason"], []).append(layer["name"])
    return list(found.items())


def _how(device: Device) -> str:
    if device.latency_source == DECLARED:
        return f"{DECLARED}, batch: {device.batch}"
    return f"{device.latency_source}, ONNX Runtime, {device.running}"


def _choices(subject: Subject, row: int) -> dict[str, int | None]:
    layer = subject.layers[row]
    legal = len(legal_recipes(layer, subject.network.modules[layer.name]))
    return {"legal": legal, "offered": int(subject.price().legal[row].sum()) if subject.is_priced() else None}
