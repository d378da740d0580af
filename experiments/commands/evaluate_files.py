"""Measures the files of a hand-over folder again, with nothing but the files and the data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from plywise.compressors.errors import FileFormatError
from plywise.env.runtime.runtime import accuracy_onnx, time_models
from plywise.experiments.commands.near_chance import chance_warning, tell
from plywise.experiments.commands.study import samples
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.data.normalisation import Normalisation, reported_normalisation
from plywise.experiments.handover.files import CHECKED, checksum
from plywise.experiments.handover.measuring import measured_energies
from plywise.experiments.handover.running import Running
from plywise.experiments.networks.loading import WEIGHTS, load_compressed
from plywise.experiments.networks.model_loading import check_fits

FIGURES = ("accuracy", "torch_accuracy", "storage_bytes", "onnx_bytes", "latency_ms")


def evaluate_files(
    folder: Path, data: str | None = None, model: str | None = None, normalisation: Normalisation | None = None
) -> None:
    """Prints what the report says alongside what the files show now.

    Args:
        folder: a hand-over folder.
        data: the dataset whose test split is used; that of the report where None.
        model: the original network, where it is not of the zoo.
        normalisation: of the images; that of the report where None.

    Raises:
        PlywiseError: if files are missing or damaged.
    """
    report = read_report(folder)
    said = report["compressed"]
    check_unchanged(folder, report["checksums"])
    network = load_compressed(folder, model)
    dataset = load_dataset(data or str(report["data"]))
    check_fits(network, dataset)
    dataset = dataset.normalised(normalisation or reported_normalisation(report.get("normalisation")))
    test, onnx = samples(dataset.test), folder / "model.onnx"
    running = Running.reported(report)
    found = test.accuracy(test.logits(network))
    accuracy = size = latency = None
    if onnx.is_file() or said["onnx_bytes"] is not None:  # some networks cannot be exported
        timing = time_models([onnx], (running.batch, *dataset.input_shape), running.execution)[0]
        accuracy = accuracy_onnx(onnx, test.inputs, test.labels)
        size, latency = onnx.stat().st_size, timing.median_ms
    rows: list[tuple[str, float | None, float | None]] = [
        ("accuracy in torch, %", said["torch_accuracy"], found),
        ("accuracy in ONNX Runtime, %", said["accuracy"], accuracy),
        (f"bytes of {WEIGHTS}", said["storage_bytes"], (folder / WEIGHTS).stat().st_size),
        ("bytes of model.onnx", said["onnx_bytes"], size),
        (f"latency, ms (median; {running.words})", said["latency_ms"], latency),
    ]
    if said.get("energy_source") == "measured":
        ((energy,), counter) = measured_energies(running, [onnx], dataset.input_shape)
        rows.append((f"energy, mJ ({counter})", said["energy_mj"], energy))
    table = Table("", "report", "now", title=str(folder))
    for name, *values in rows:
        table.add_row(name, *map(_shown, values))
    Console().print(table)
    tell(chance_warning(found, dataset, "the compressed network"))


def _shown(value: float | None) -> str:
    """Returns a figure in words; None is what could not be measured when the folder was written."""
    if value is None:
        return "-"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def check_unchanged(folder: Path, checksums: Mapping[str, str]) -> None:
    """Raises FileFormatError where a file is not the one that was handed over."""
    for name in CHECKED:
        if name not in checksums:
            continue
        if not (folder / name).is_file():
            raise FileFormatError(f"{folder / name} is missing; compress again or restore it")
        if checksum(folder / name) != checksums[name]:
            raise FileFormatError(
                f"{folder / name} is damaged or altered: its checksum is not that of {folder / 'report.json'}; "
                "compress again or restore it"
            )


def read_report(folder: Path) -> dict[str, Any]:
    """Returns the report of a finished run; raises FileFormatError where there is none."""
    path = folder / "report.json"
    try:
        report = json.loads(path.read_bytes())
        numbers = [report["compressed"][name] for name in FIGURES]
        report["checksums"] = dict(report.get("checksums", {}))  # older reports have none
    except OSError as error:
        raise FileFormatError(
            f"{folder} holds no finished run ({path.name}: {error.strerror}); name a folder that 'compress' wrote"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileFormatError(f"{path} is damaged ({error}); compress again or restore it") from error
    if not all(isinstance(number, int | float | None) for number in numbers) or not isinstance(report.get("data"), str):
        raise FileFormatError(f"{path} is damaged: its figures are no numbers; compress again or restore it")
    found: dict[str, Any] = report
    return found
