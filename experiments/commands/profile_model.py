"""What a network is made of and what its layers cost on this machine."""

import os
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from plywise.compressors.errors import ConfigurationError
from plywise.env.costs.device import DECLARED, Device
from plywise.env.costs.device_file import write_questions
from plywise.env.costs.devices import open_device
from plywise.env.network.menu import catalogue, legal_recipes
from plywise.env.prices.pricing import Pricer
from plywise.env.subject import Subject
from plywise.experiments.commands.near_chance import chance_warning, tell
from plywise.experiments.commands.study import load_both, study_network, trained_here
from plywise.experiments.commands.usual_preprocessing import preprocessing_warning
from plywise.experiments.data.dataset import Dataset
from plywise.experiments.data.preprocessing import NOTHING_GIVEN, Preprocessing


def profile_model(
    model: str,
    data: str | None,
    weights: Path | None = None,
    device: str | None = None,
    ask: Path | None = None,
    preprocessing: Preprocessing = NOTHING_GIVEN,
    task: str | None = None,
) -> None:
    """Prints a table of layers: shapes, macs, bytes, latency in float and in integers, recipes, what is pruned.

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
    table = Table(title=f"{model} on {latency.device.name} ({_how(latency.device)}, layers one by one)")
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
        "offered, as no other of its kind is at least as good in every price"
        + ("" if subject.is_priced() else "; ?: not priced yet, 'plywise compress' does that")
    )
    console.print(f"latencies: {latency.source_of(chains)}")
    for name, reason in network.skipped.items():
        console.print(f"left as it is: {name}: {reason}")
    if ask is not None:
        console.print(
            f"written to {ask} ({asked.running}); on the target, with numpy and onnxruntime: "
            f"python3 {ask.name} device.json"
        )


def _how(device: Device) -> str:
    if device.latency_source == DECLARED:
        return f"{DECLARED}, batch: {device.batch}"
    return f"{device.latency_source}, ONNX Runtime, {device.running}"


def _choices(subject: Subject, row: int) -> str:
    layer = subject.layers[row]
    legal = len(legal_recipes(layer, subject.network.modules[layer.name]))
    return f"{legal}/{subject.price().legal[row].sum() if subject.is_priced() else '?'}"
