"""The files of a hand-over folder: written, and checked against what was scored."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import ModelError
from plywise.compressors.packing.packed_file import load_packed
from plywise.env.network.samples import Samples
from plywise.env.runtime.runtime import accuracy_onnx
from plywise.env.subject import Subject
from plywise.experiments.networks.loading import WEIGHTS

PLAN, ONNX, REPORT = "plan.yaml", "model.onnx", "report.json"

CHECKED = (WEIGHTS, ONNX)
"""Files whose checksums stand in the report; the plan is there to be edited."""

LOAD_TOLERANCE = 1e-5
RUNTIME_TOLERANCE = 0.1
"""Points of accuracy by which the runtime may differ from the network in torch."""
NEAR = 0.03
"""For each wrong answer so many may turn either way where the runtime rounds numbers in another order."""


def checksum(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(content: Any, path: Path) -> None:
    """Writes JSON, atomically."""
    write_atomically(path, f"{json.dumps(content, indent=2)}\n".encode())


def check_files(subject: Subject, model: nn.Module, test: Samples, here: float, folder: Path) -> None:
    """Raises ModelError unless both files give what the compressed network gives, `here` percent on `test`."""
    some = test.first(256)
    expected = some.logits(model)
    loaded = some.logits(load_packed(folder / WEIGHTS, subject.network.original))
    difference = float((loaded - expected).abs().max())
    if difference > LOAD_TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ModelError(
            f"{folder / 'weights.safetensors'} gives other outputs than what was scored (by {difference:.2g})"
        )
    there = accuracy_onnx(folder / ONNX, test.inputs, test.labels)
    # On a small test split, one image more or less is already above the tolerance. A network that has lost much answers
    # many images by a hair: twice the standard deviation of turning either way is no sign of a wrong file.
    turned = 2.0 * (NEAR * (1.0 - here / 100.0) * len(test)) ** 0.5
    if abs(here - there) > max(RUNTIME_TOLERANCE, max(1.0, turned) * 100.0 / len(test)) + 1e-9:
        raise ModelError(f"{folder / 'model.onnx'} reaches {there:.2f} % where the compressed network has {here:.2f} %")
