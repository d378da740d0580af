"""The files of a hand-over folder: written, and checked against what was scored."""

import hashlib
import json
import lzma
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.packing.packed_file import load_packed
from plywise.compressors.plain_values import as_json
from plywise.env.prices.pricing import original_storage
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.subject import Subject
from plywise.env.task.judge import Judge
from plywise.env.task.metrics import Score
from plywise.env.task.outputs import floats_in
from plywise.env.task.samples import Samples
from plywise.experiments.handover.checks import Checks
from plywise.experiments.networks.loading import WEIGHTS

PLAN, ONNX, SHIPPED, REPORT = "plan.yaml", "model.onnx", "model.onnx.xz", "report.json"

CHECKED = (WEIGHTS, ONNX, SHIPPED)
"""Files whose checksums stand in the report; the plan is there to be edited."""

LZMA = 6
"""Preset: higher ones take several times as long and gain nothing on weights."""

LOADED_BACK = 256
"""Test samples that packed weights are compared on."""
LOAD_TOLERANCE = 1e-5
RUNTIME_TOLERANCE = 0.1
"""Points by which the runtime may differ from the network in torch."""
NEAR = 0.03
"""For each wrong output so many may turn either way where the runtime rounds numbers in another order."""

DEFECT = "a defect of Plywise: please report it together with plan.yaml"
REFUSED = "an operator of the network that the exporter or this version of ONNX Runtime does not know"
OPTIMISED = (
    "graph optimisations of ONNX Runtime: without them the file reaches {}; run it with graph_optimization_level "
    "ORT_DISABLE_ALL where accuracy counts more than speed"
)
KERNELS = (
    "integer kernels of ONNX Runtime on this processor, or an operator that the exporter writes differently, for the "
    "file reaches {} without graph optimisations as well"
)


@dataclass(frozen=True)
class NetworkFiles:
    """Where the files of one network lie, and what came of writing them.

    Attributes:
        weights, onnx, shipped: paths; the last is the ONNX file behind LZMA.
        weights_bytes: size of the packed weights; None where they could not be written.
        any_batch: whether the ONNX file runs on any batch; None where it could not be written.
    """

    weights: Path
    onnx: Path
    shipped: Path
    weights_bytes: int | None
    any_batch: bool | None


def write_network(subject: Subject, model: nn.Module, folder: Path, name: str, checks: Checks) -> NetworkFiles:
    """Writes packed weights and the ONNX file of one network, as it runs and as it ships.

    The original's weights are as large as their own file.

    Args:
        subject: the network under study.
        model: what it was made into.
        folder: where to write.
        name: what checks call the network.
        checks: told what cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights, onnx, shipped = folder / WEIGHTS, folder / ONNX, folder / SHIPPED
    size: int | None = int(original_storage(subject.network))
    if model is not subject.network.model:
        size = checks.attempt(f"{name}: {WEIGHTS} can be written", DEFECT, lambda: subject.pack(model, weights))
    batch = checks.attempt(
        f"{name}: {ONNX} can be written",
        REFUSED,
        lambda: export_onnx(model, subject.network.interface, onnx, subject.other_inputs),
    )
    if batch is not None:
        write_atomically(shipped, lzma.compress(onnx.read_bytes(), preset=LZMA))
    return NetworkFiles(weights, onnx, shipped, size, batch)


def check_weights(subject: Subject, model: nn.Module, test: Samples, path: Path, checks: Checks) -> None:
    """Checks that packed weights, loaded back, give the outputs of the network that they were written from."""
    some = test.first(LOADED_BACK)
    loaded = checks.attempt(
        f"{WEIGHTS} can be loaded", DEFECT, lambda: _numbers(load_packed(path, subject.network.original), some)
    )
    if loaded is None:
        return
    expected = _numbers(model, some)
    same = loaded.shape == expected.shape
    difference = float((loaded - expected).abs().amax()) if same and len(expected) else float("nan")
    checks.compare(
        f"{WEIGHTS} gives the outputs that were scored",
        difference,
        LOAD_TOLERANCE * max(1.0, float(expected.abs().max())),
        "largest difference of an output",
        f"{path} gives other outputs than what was scored (by {difference:.2g})",
        lambda: DEFECT,
    )


def _numbers(model: nn.Module, samples: Samples) -> Tensor:
    """Returns all floats of all outputs, `(m,)`."""
    return torch.cat([each.flatten() for outputs in samples.outputs(model) for each in floats_in(outputs)])


def check_onnx(
    path: Path, judge: Judge, expected: Score, found: Score, plainly: Callable[[], Score], checks: Checks
) -> None:
    """Checks that the runtime reaches what the network in torch does.

    Args:
        path: the ONNX file.
        judge: of both.
        expected: score of the network in torch.
        found: that of the file.
        plainly: finds that of the file without optimisations of its graph.
        checks: told whether it does.
    """
    here, there = expected.value, found.value
    changes = None
    if expected.values is not None and found.values is not None and len(expected.values) == len(found.values):
        changes = found.values - expected.values

    def likely_cause() -> str:
        plain = plainly().value
        return (OPTIMISED if abs(plain - here) < abs(there - here) else KERNELS).format(judge.shown(plain))

    checks.compare(
        f"{ONNX} reaches the {judge.name} of the compressed network in torch",
        abs(here - there),
        max(RUNTIME_TOLERANCE, 0.0 if changes is None else _by_chance(expected, changes)) + 1e-9,
        f"points of {judge.name}",
        f"{path} reaches {judge.shown(there)} where the compressed network has {judge.shown(here)}"
        + ("" if changes is None else f"; {int((changes != 0).sum())} of {len(changes)} items count differently"),
        likely_cause,
    )


def _by_chance(expected: Score, changes: Tensor) -> float:
    """Returns how many points two networks may differ by where the runtime rounds numbers in another order.

    On a small test split, one image more or less is already above the tolerance. A network that has lost much decides
    many images by a hair: twice the standard deviation of turning either way is no sign of a wrong file. Of values that
    count no right answers, it is twice the standard error of their changes.

    Args:
        expected: score of the network in torch.
        changes: of each item's value `(n,)`, points.
    """
    count = len(changes)
    if bool(((changes == 0) | (changes.abs() == 100)).all()):
        near = 2.0 * math.sqrt(NEAR * (1.0 - expected.value / 100.0) * count)
        return max(1.0, near) * 100.0 / count
    return 2.0 * float(changes.double().std(correction=0)) / math.sqrt(count)


def checksums(folder: Path) -> dict[str, str]:
    """Returns the checksums of those files that are there."""
    return {name: checksum(folder / name) for name in CHECKED if (folder / name).is_file()}


def checksum(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def told(figure: float) -> float | None:
    """Returns None for what is no finite number, which JSON cannot hold."""
    return float(figure) if math.isfinite(figure) else None


def write_json(content: Any, path: Path) -> None:
    """Writes JSON, atomically; whatever JSON cannot hold is written as None or as text, so that nothing is lost."""
    write_atomically(path, f"{json.dumps(as_json(content), indent=2, allow_nan=False)}\n".encode())
