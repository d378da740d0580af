"""Measures the files of a hand-over folder again, with nothing but the files and the data."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.env.execution.progress import phase, tracked
from plywise.env.network.preparation import prepare
from plywise.env.runtime.runtime import running_model, time_models, timing_inputs
from plywise.env.task.binding import bind
from plywise.env.task.interface import Interface
from plywise.env.task.samples import Samples
from plywise.experiments.commands.near_chance import chance_warning, tell
from plywise.experiments.commands.study import check_no_preprocessing, own_task, samples
from plywise.experiments.commands.usual_preprocessing import preprocessing_warning
from plywise.experiments.data.dataset import Dataset
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.data.preprocessing import NOTHING_GIVEN, Preprocessing, reported_preprocessing
from plywise.experiments.handover.files import CHECKED, checksum
from plywise.experiments.handover.measuring import measured_energies
from plywise.experiments.handover.running import Running
from plywise.experiments.networks.loading import WEIGHTS, load_compressed
from plywise.experiments.networks.model_loading import check_fits, load_model, load_task
from plywise.experiments.networks.zoo import ZOO
from plywise.experiments.pages.report_file import read_report

ITEMS = 4
"""That the network is called on to see what goes in and what comes out."""


def evaluate_files(
    folder: Path,
    data: str | None = None,
    model: str | None = None,
    preprocessing: Preprocessing = NOTHING_GIVEN,
    task: str | None = None,
    weights: Path | None = None,
) -> list[dict[str, Any]]:
    """Returns what the report says alongside what the files show now: rows of `figure`, `report` and `now`.

    Args:
        folder: a hand-over folder.
        data: the dataset whose test split is used; that of the report where None.
        model: the original network, where it is not of the zoo.
        preprocessing: of the images; what is not given is that of the report.
        task: `path.py:make_task`; that of the report where None.
        weights: of the original network, where it is the reference.

    Raises:
        PlywiseError: if files are missing or damaged.
    """
    report = read_report(folder)
    said = report["compressed"]
    check_unchanged(folder, report["checksums"])
    network = load_compressed(folder, model)
    dataset = _dataset(report, data, task, preprocessing)
    if dataset is None:
        test = _task_samples(report, network, model or str(report["model"]), task, weights)
    else:
        check_fits(network, dataset)
        test = samples(dataset.test)
    onnx, judge, running = folder / "model.onnx", test.judge, Running.reported(report)
    with phase(tracked, f"{folder}: scoring the network in torch"):
        found = test.score(network).value * judge.point
    interface = Interface.of(network, judge.forward, test.joined(ITEMS))
    inputs = timing_inputs(interface, running.batch)
    accuracy = size = latency = None
    if onnx.is_file() or said["onnx_bytes"] is not None:  # some networks cannot be exported
        with phase(tracked, f"{folder}: timing and running model.onnx"):
            timing = time_models([onnx], inputs, running.execution)[0]
            accuracy = test.score(running_model(onnx, interface, network)).value * judge.point
        size, latency = onnx.stat().st_size, timing.median_ms
    rows: list[tuple[str, float | None, float | None]] = [
        (f"{judge.name} in torch, {judge.unit}", said["torch_accuracy"], found),
        (f"{judge.name} in ONNX Runtime, {judge.unit}", said["accuracy"], accuracy),
        (f"bytes of {WEIGHTS}", said["storage_bytes"], (folder / WEIGHTS).stat().st_size),
        ("bytes of model.onnx", said["onnx_bytes"], size),
        (f"latency, ms (median; {running.words})", said["latency_ms"], latency),
    ]
    if said.get("energy_source") == "measured":
        ((energy,), counter) = measured_energies(running, [onnx], inputs)
        rows.append((f"energy, mJ ({counter})", said["energy_mj"], energy))
    if dataset is not None:
        tell(preprocessing_warning(network, dataset, "the compressed network"))
        tell(chance_warning(found, dataset, "the compressed network"))
    return [{"figure": name, "report": before, "now": now} for name, before, now in rows]


def show_figures(figures: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Prints what `evaluate_files` returns."""
    table = Table("", "report", "now", title=str(folder))
    for row in figures:
        table.add_row(row["figure"], _shown(row["report"]), _shown(row["now"]))
    Console().print(table)


def _dataset(report: Mapping[str, Any], data: str | None, task: str | None, given: Preprocessing) -> Dataset | None:
    """Returns the dataset that files are looked at on; None where they are for a task."""
    reported = report.get("preprocessing")
    if task is not None or (data is None and reported is None):
        check_no_preprocessing(given)
        return None
    return load_dataset(data or str(report["data"]), preprocessing=given.or_else(reported_preprocessing(reported)))


def _task_samples(
    report: Mapping[str, Any], network: nn.Module, model: str, task: str | None, weights: Path | None
) -> Samples:
    """Returns the test samples of a task, judged as in the report."""
    spec, name = task or report.get("task"), model.removeprefix("zoo:")
    found = own_task(model) if spec is None and name in ZOO else None
    if found is None:
        if spec is None:
            raise ConfigurationError(
                "the network was compressed from Python, with data that only the caller has; give --task "
                "path.py:make_task with a function that returns the same task"
            )
        found = load_task(spec)
    point = report.get("metric", {}).get("point", 1.0)
    original = prepare(load_model(model, weights)).model if found.metric is None else network
    return bind(replace(found, point=point), original).test


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
