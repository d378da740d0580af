"""Measures the files of a hand-over folder again, with nothing but the files and the data."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from plywise.compressors.errors import FileFormatError
from plywise.env.runtime import accuracy_onnx, time_models
from plywise.experiments.datasets import load_dataset
from plywise.experiments.loading import WEIGHTS, load_compressed
from plywise.experiments.model_loading import load_model
from plywise.experiments.study import samples


def evaluate_files(folder: Path, data: str, model: str | None = None) -> None:
    """Prints what the report says beside what the files show now.

    Raises:
        PlywiseError: if files are missing or damaged.
    """
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))["compressed"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileFormatError(
            f"{folder} holds no finished run (report.json: {error}); name what 'compress' wrote"
        ) from error
    dataset = load_dataset(data)
    test = samples(dataset.test)
    network = load_compressed(folder, None if model is None else load_model(model))
    timing = time_models([folder / "model.onnx"], (1, *dataset.input_shape))[0]
    rows = (
        ("accuracy in torch, %", report["accuracy"], test.accuracy(test.logits(network))),
        (
            "accuracy in ONNX Runtime, %",
            report["accuracy"],
            accuracy_onnx(folder / "model.onnx", test.inputs, test.labels),
        ),
        ("bytes of weights.safetensors", report["storage_bytes"], (folder / WEIGHTS).stat().st_size),
        ("bytes of model.onnx", report["onnx_bytes"], (folder / "model.onnx").stat().st_size),
        ("latency, ms (median)", report["latency_ms"], timing.median_ms),
    )
    table = Table("", "report", "now", title=str(folder))
    for name, said, found in rows:
        table.add_row(
            name,
            f"{said:,.4g}" if isinstance(said, float) else f"{said:,}",
            f"{found:,.4g}" if isinstance(found, float) else f"{found:,}",
        )
    Console().print(table)
