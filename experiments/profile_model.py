"""What a network is made of and what its layers cost on this machine."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from plywise.env.menu import catalogue, legal_recipes
from plywise.env.pricing import SLOTS
from plywise.env.subject import Subject
from plywise.experiments.datasets import load_dataset
from plywise.experiments.study import study


def profile_model(model: str, data: str, weights: Path | None = None) -> None:
    """Prints a table of layers: shapes, macs, bytes, latency in float and in integers, recipes, what is pruned.

    Raises:
        PlywiseError: if the network or the data are not usable.
    """
    dataset = load_dataset(data)
    subject = study(model, dataset, weights).subject
    network, latency = subject.network, subject.latency
    chains = [network.operations[layer.name] for layer in network.layers]
    integers = [tuple(replace(operation, integer=True) for operation in chain) for chain in chains]
    plain, whole = latency.milliseconds(chains), latency.milliseconds(integers)
    table = Table(title=f"{model} on {latency.device.name} (ONNX Runtime, 1 thread, batch 1, layers one by one)")
    for heading in ("layer", "input", "output", "macs", "weights", "fp32 ms", "int8 ms", "recipes", "channels"):
        table.add_column(heading, justify="left" if heading in ("layer", "channels") else "right")
    for row, layer in enumerate(network.layers):
        table.add_row(
            layer.name,
            "x".join(map(str, layer.input_shape)),
            "x".join(map(str, layer.output_shape)),
            f"{network.macs[layer.name]:,}",
            f"{network.modules[layer.name].get_parameter('weight').numel():,}",
            f"{plain[row]:.4f}",
            f"{whole[row]:.4f}",
            _choices(subject, row),
            layer.uncut or ("decides" if layer.leads else "follows"),
        )
    table.add_section()
    table.add_row(
        "sum", "", "", f"{sum(network.macs.values()):,}", "", f"{plain.sum():.4f}", f"{whole.sum():.4f}", "", ""
    )
    console = Console()
    console.print(table)
    console.print(
        f"recipes: how many of the {len(catalogue())} in the catalogue a layer can take, and how many of these are "
        f"offered (at most {SLOTS}), as no other is at least as good in every price"
        + ("" if subject.priced else "; ?: not priced yet, 'plywise compress' does that")
    )
    for name, reason in network.skipped.items():
        console.print(f"left as it is: {name}: {reason}")


def _choices(subject: Subject, row: int) -> str:
    layer = subject.layers[row]
    legal = len(legal_recipes(layer, subject.network.modules[layer.name]))
    return f"{legal}/{subject.table.legal[row].sum() if subject.priced else '?'}"
