"""The files of a hand-over folder: written, and checked against what was scored."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.packing.packed_file import load_packed
from plywise.env.prices.pricing import original_storage
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.runtime import run_model
from plywise.env.subject import Subject
from plywise.env.task.samples import Samples
from plywise.experiments.handover.checks import Checks
from plywise.experiments.networks.loading import WEIGHTS

PLAN, ONNX, REPORT = "plan.yaml", "model.onnx", "report.json"

CHECKED = (WEIGHTS, ONNX)
"""Files whose checksums stand in the report; the plan is there to be edited."""

LOADED_BACK = 256
"""Test samples that packed weights are compared on."""
LOAD_TOLERANCE = 1e-5
RUNTIME_TOLERANCE = 0.1
"""Points of accuracy by which the runtime may differ from the network in torch."""
NEAR = 0.03
"""For each wrong output so many may turn either way where the runtime rounds numbers in another order."""

DEFECT = "a defect of Plywise: please report it together with plan.yaml"
REFUSED = "an operator of the network that the exporter or this version of ONNX Runtime does not know"
OPTIMISED = (
    "graph optimisations of ONNX Runtime: without them the file reaches {:.2f} %; run it with graph_optimization_level "
    "ORT_DISABLE_ALL where accuracy counts more than speed"
)
KERNELS = (
    "integer kernels of ONNX Runtime on this processor, or an operator that the exporter writes differently, for the "
    "file reaches {:.2f} % without graph optimisations as well"
)


@dataclass(frozen=True)
class NetworkFiles:
    """Where the files of one network lie, and what came of writing them.

    Attributes:
        weights, onnx: paths.
        weights_bytes: size of the packed weights; None where they could not be written.
        any_batch: whether the ONNX file runs on any batch; None where it could not be written.
    """

    weights: Path
    onnx: Path
    weights_bytes: int | None
    any_batch: bool | None


def write_network(subject: Subject, model: nn.Module, folder: Path, name: str, checks: Checks) -> NetworkFiles:
    """Writes packed weights and the ONNX file of one network; the original's weights are as large as their own file.

    Args:
        subject: the network under study.
        model: what it was made into.
        folder: where to write.
        name: what checks call the network.
        checks: told what cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights, onnx = folder / WEIGHTS, folder / ONNX
    size: int | None = int(original_storage(subject.network))
    if model is not subject.network.model:
        size = checks.attempt(f"{name}: {WEIGHTS} can be written", DEFECT, lambda: subject.pack(model, weights))
    batch = checks.attempt(
        f"{name}: {ONNX} can be written", REFUSED, lambda: export_onnx(model, subject.network.example, onnx)
    )
    return NetworkFiles(weights, onnx, size, batch)


def check_weights(subject: Subject, model: nn.Module, test: Samples, path: Path, checks: Checks) -> None:
    """Checks that packed weights, loaded back, give the outputs of the network that they were written from."""
    some = test.first(LOADED_BACK)
    loaded = checks.attempt(
        f"{WEIGHTS} can be loaded", DEFECT, lambda: some.logits(load_packed(path, subject.network.original))
    )
    if loaded is None:
        return
    expected = some.logits(model)
    difference = float((loaded - expected).abs().max())
    checks.compare(
        f"{WEIGHTS} gives the outputs that were scored",
        difference,
        LOAD_TOLERANCE * max(1.0, float(expected.abs().max())),
        "largest difference of an output",
        f"{path} gives other outputs than what was scored (by {difference:.2g})",
        lambda: DEFECT,
    )


def check_onnx(path: Path, test: Samples, expected: Tensor, outputs: Tensor, checks: Checks) -> None:
    """Checks that the runtime reaches the accuracy of the network in torch.

    Args:
        path: the ONNX file.
        test: samples.
        expected: `(n, classes)` outputs of the network in torch on them.
        outputs: `(n, classes)` those of the file.
        checks: told whether it does.
    """
    here, there = test.accuracy(expected), test.accuracy(outputs)
    turned = int((expected.argmax(1) != outputs.argmax(1)).sum())
    # On a small test split, one image more or less is already above the tolerance. A network that has lost much decides
    # many images by a hair: twice the standard deviation of turning either way is no sign of a wrong file.
    near = 2.0 * (NEAR * (1.0 - here / 100.0) * len(test)) ** 0.5

    def likely_cause() -> str:
        plain = test.accuracy(run_model(path, test.inputs, optimised=False))
        return (OPTIMISED if abs(plain - here) < abs(there - here) else KERNELS).format(plain)

    checks.compare(
        f"{ONNX} reaches the accuracy of the compressed network in torch",
        abs(here - there) if bool(outputs.isfinite().all()) else float("nan"),
        max(RUNTIME_TOLERANCE, max(1.0, near) * 100.0 / len(test)) + 1e-9,
        "points of accuracy",
        f"{path} reaches {there:.2f} % where the compressed network has {here:.2f} %; {turned} of {len(test)} outputs "
        "name another class",
        likely_cause,
    )


def checksums(folder: Path) -> dict[str, str]:
    """Returns the checksums of those files that are there."""
    return {name: checksum(folder / name) for name in CHECKED if (folder / name).is_file()}


def checksum(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(content: Any, path: Path) -> None:
    """Writes JSON, atomically."""
    write_atomically(path, f"{json.dumps(content, indent=2, allow_nan=False)}\n".encode())
