"""What a user gets: plan, ONNX file, packed weights and report, each checked against what was scored."""

import fcntl
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import ConfigurationError, ModelError
from plywise.compressors.packing.packed_file import load_packed
from plywise.compressors.recipes.plan import Plan
from plywise.env.costs.chains import realised_chain
from plywise.env.costs.device import DECLARED, Device
from plywise.env.costs.energy import energy_mj
from plywise.env.costs.latency import Chain
from plywise.env.costs.roofline import needed_bytes
from plywise.env.network.menu import legal_recipes
from plywise.env.network.samples import Samples
from plywise.env.network.scheme import Scheme
from plywise.env.prices.prices import METRICS
from plywise.env.prices.pricing import original_storage
from plywise.env.recovery.recovery import Recovered
from plywise.env.recovery.recovery_state import STATE_FILE
from plywise.env.runtime.energy_counter import card_counter, processor_counter
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.runtime import ONE_THREAD, Timing, accuracy_onnx, measure_energy, time_models
from plywise.env.runtime.target_program import CPU
from plywise.env.score.demand import Demand
from plywise.env.score.score import judge
from plywise.env.subject import Subject

UNFINISHED = "UNFINISHED"
"""A file that stands in the folder until everything else does; the report is written last."""

CHECKED = ("weights.safetensors", "model.onnx")
"""Files whose checksums stand in the report; the plan is there to be edited."""

VERSIONED = ("plywise", "torch", "onnxruntime", "numpy")
"""What figures depend on, for the report."""

UNIFORM = "uniform_quantization(bits=7) + activation_quantization"
"""Uniform int8 as the runtime's fast kernels want it: 8-bit activations, weights in [-64, 63]."""

OFF_TABLE = "not on the price list of this layer: applied as written, priced only as part of the whole network"

LOAD_TOLERANCE = 1e-5
RUNTIME_TOLERANCE = 0.1
"""Points of accuracy by which the runtime may differ from the network in torch."""
NEAR = 0.03
"""For each wrong answer so many may turn either way where the runtime rounds numbers in another order."""


@dataclass(frozen=True)
class Origin:
    """Where things come from, for the report.

    Attributes:
        model, data: as the user gave them.
        seed: of every random choice.
        method: who found the plan.
        evaluations: plans that were scored exactly on the way.
        stopped: how many of them were stopped early, as none of use.
        started: `time.perf_counter()` at the start of the run.
        validation: what kind of samples plans were scored on.
        refused: layers that cannot take the recipe of the pattern that they match, with the reason.
    """

    model: str
    data: str
    seed: int
    method: str
    evaluations: int
    started: float
    validation: str
    refused: Mapping[str, str] = field(default_factory=dict)
    stopped: int = 0


def check_folder(folder: Path) -> None:
    """Makes sure that a run may write to a folder, which need not exist yet; changes nothing.

    Raises:
        ConfigurationError: if it holds a finished run or files that are not of an unfinished one, or is not writable.
    """
    if (folder / "report.json").exists():
        raise ConfigurationError(f"{folder} holds a finished run; name another folder or delete it")
    if folder.is_dir() and not (folder / UNFINISHED).exists() and any(folder.iterdir()):
        some = ", ".join(sorted(path.name for path in folder.iterdir())[:5])
        raise ConfigurationError(f"{folder} holds other files ({some}); name a new or an empty folder")
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Raises ConfigurationError unless files can be written to a folder, which need not exist yet."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigurationError(f"cannot write to {folder}: {nearest} is a file; name a folder")
    try:
        with tempfile.TemporaryDirectory(dir=nearest, prefix=".plywise"):
            pass
    except OSError as error:
        raise ConfigurationError(f"cannot write to {folder}: {error.strerror}; name another folder") from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps other runs out of it; a run that is killed lets go of it.

    A folder that was not there and is still empty at the end is removed again.

    Raises:
        ConfigurationError: if another run is writing to it.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(f"another run is writing to {folder}; wait for it or name another") from error
        try:
            yield
        finally:
            if new and not any(folder.iterdir()):
                folder.rmdir()
    finally:
        os.close(lock)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes a folder, marked as not whole yet, and keeps other runs out of it; where nothing comes in, no mark is left.

    Raises:
        ConfigurationError: if another run is writing to it or has finished there.
    """
    check_folder(folder)
    mark = folder / UNFINISHED
    with alone_in(folder):
        check_folder(folder)
        mark.write_text("the same command goes on from here; what is in this folder is not whole yet\n")
        try:
            yield
        finally:
            if list(folder.iterdir()) == [mark]:
                mark.unlink()


def hand_over(
    subject: Subject,
    plan: Plan,
    demand: Demand,
    test: Samples,
    folder: Path,
    origin: Origin,
    recovered: Recovered | None = None,
) -> dict[str, Any]:
    """Writes the compressed network into `folder`, checks the files and returns the report.

    Args:
        subject: the network under study.
        plan: how to compress it.
        demand: what was wanted.
        test: samples that nothing has looked at yet.
        folder: that is `claimed`.
        origin: for the report.
        recovered: the plan's network after fine-tuning; it is put together anew where None.

    Raises:
        ModelError: if a file does not give what was scored.
    """
    model = subject.bank.stitch(plan).model.eval() if recovered is None else recovered.model
    uniform = subject.bank.stitch(uniform_plan(subject)).model.eval()
    plan.save(folder / "plan.yaml")
    subject.pack(model, folder / "weights.safetensors")
    any_batch = export_onnx(model, subject.network.example, folder / "model.onnx")
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / "original.onnx", Path(scratch) / "uniform.onnx", folder / "model.onnx"]
        export_onnx(subject.network.model, subject.network.example, paths[0])
        export_onnx(uniform, subject.network.example, paths[1])
        uniform_bytes = subject.pack(uniform, Path(scratch) / "uniform")
        device = subject.latency.device
        execution, batch = device.execution if device.is_here else ONE_THREAD, device.batch if any_batch else 1
        timings = time_models(paths, (batch, *subject.network.example.shape[1:]), execution)
        energies, counter = _energies(subject, paths)
        sizes = [path.stat().st_size for path in paths]
    storage = (
        original_storage(subject.network),
        float(uniform_bytes),
        float((folder / "weights.safetensors").stat().st_size),
    )
    models = (subject.network.model, uniform, model)
    blocks = [
        _block(subject, each, test, size, onnx, timing, energy) | {"batch": batch}
        for each, size, onnx, timing, energy in zip(models, storage, sizes, timings, energies, strict=True)
    ]
    _check_files(subject, model, test, blocks[-1]["accuracy"], folder)
    report = _report(subject, plan, demand, origin, blocks, recovered) | {"energy_counter": counter}
    report["checksums"] = {name: checksum(folder / name) for name in CHECKED}
    write_json(report, folder / "report.json")
    for name in (STATE_FILE, UNFINISHED):
        (folder / name).unlink(missing_ok=True)
    return report


def uniform_plan(subject: Subject) -> Plan:
    """Returns 8-bit weights and activations on every layer that can take them."""
    return Scheme.of({"*": UNIFORM}).on(subject.network)[0]


def checksum(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(content: Any, path: Path) -> None:
    """Writes JSON, atomically."""
    write_atomically(path, f"{json.dumps(content, indent=2)}\n".encode())


def _check_files(subject: Subject, model: nn.Module, test: Samples, here: float, folder: Path) -> None:
    """Raises ModelError unless both files give what the compressed network gives, `here` percent on `test`."""
    some = test.first(256)
    expected = some.logits(model)
    loaded = some.logits(load_packed(folder / "weights.safetensors", subject.network.original))
    difference = float((loaded - expected).abs().max())
    if difference > LOAD_TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ModelError(
            f"{folder / 'weights.safetensors'} gives other outputs than what was scored (by {difference:.2g})"
        )
    there = accuracy_onnx(folder / "model.onnx", test.inputs, test.labels)
    # On a small test split, one image more or less is already above the tolerance. A network that has lost much answers
    # many images by a hair: twice the standard deviation of turning either way is no sign of a wrong file.
    turned = 2.0 * (NEAR * (1.0 - here / 100.0) * len(test)) ** 0.5
    if abs(here - there) > max(RUNTIME_TOLERANCE, max(1.0, turned) * 100.0 / len(test)) + 1e-9:
        raise ModelError(f"{folder / 'model.onnx'} reaches {there:.2f} % where the compressed network has {here:.2f} %")


def _energies(subject: Subject, paths: list[Path]) -> tuple[list[float | None], str]:
    """Returns the measured energy of each file, None where there is none, and what is said about counters."""
    device = subject.latency.device
    unread: list[float | None] = [None] * len(paths)
    if not device.is_here:
        return unread, "not read: the network will run on another device"
    shape = (1, *subject.network.example.shape[1:])
    try:
        if device.provider == CPU:
            found = measure_energy(paths, shape, processor_counter())
            return list(found), "read: whole processor packages, with all that they do besides"
        found = measure_energy(paths, shape, card_counter(), device.execution)
        return list(found), "read: the whole card, with all that it does besides, without the processor"
    except ConfigurationError as error:
        return unread, f"not read: {error}"


def _block(
    subject: Subject,
    model: nn.Module,
    test: Samples,
    storage: float,
    onnx_bytes: int,
    timing: Timing,
    measured_mj: float | None,
) -> dict[str, Any]:
    modules = dict(model.named_modules())
    chains = {layer.name: realised_chain(modules[layer.name], layer) for layer in subject.layers}
    macs = sum(operation.macs for chain in chains.values() for operation in chain)
    device = subject.latency.device
    energy = sum(energy_mj(chain, 0.0, device.energies) for chain in chains.values())
    energy += energy_mj((), storage, device.energies)
    block = {
        "accuracy": test.accuracy(test.logits(model)),
        "storage_bytes": int(storage),
        "onnx_bytes": onnx_bytes,
        "latency_ms": timing.median_ms,
        "latency_quartiles_ms": [timing.low_ms, timing.high_ms],
        "energy_mj": energy if measured_mj is None else measured_mj,
        "energy_source": "modelled" if measured_mj is None else "measured",
        "macs": macs,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    return block if device.is_here else block | _on_device(subject, list(chains.values()))


def _on_device(subject: Subject, chains: list[Chain]) -> dict[str, Any]:
    """Returns what is known about a network on a device that is not this machine."""
    latency, device = subject.latency, subject.latency.device
    found = {
        "device_latency_ms": float(latency.milliseconds(chains).sum()),
        "device_latency_source": latency.source_of(chains),
    }
    if device.latency_source == DECLARED:
        found |= {"energy_source": DECLARED}
    if device.memory_bytes is not None:
        needed = needed_bytes(chains)
        found |= {"memory_needed_bytes": int(needed), "fits_memory": needed <= device.memory_bytes}
    return found


def _memory_violation(device: Device, block: Mapping[str, Any]) -> dict[str, float]:
    """Returns by how much a network is too large for a device, as a share of its memory, named; no search sees this."""
    if block.get("fits_memory", True) or device.memory_bytes is None:
        return {}
    return {"memory": block["memory_needed_bytes"] / device.memory_bytes - 1.0}


def _report(
    subject: Subject,
    plan: Plan,
    demand: Demand,
    origin: Origin,
    blocks: list[dict[str, Any]],
    recovered: Recovered | None,
) -> dict[str, Any]:
    original, uniform, compressed = blocks
    # What runs elsewhere is judged by its latency there; what the files take here is reported alongside it.
    latency = "latency_ms" if subject.latency.device.is_here else "device_latency_ms"
    costs = [[block["storage_bytes"], block[latency], block["energy_mj"]] for block in blocks]
    outcome = judge(demand, costs[0], costs[2], original["accuracy"] - compressed["accuracy"])
    violations = outcome.violations | _memory_violation(subject.latency.device, compressed)
    return {
        "model": origin.model,
        "data": origin.data,
        "device": asdict(subject.latency.device),
        "demand_latency": latency,
        "demand": asdict(demand),
        "demand_met": not violations,
        "violations": violations,
        "score": outcome.score,
        "method": origin.method,
        "seed": origin.seed,
        "evaluations": origin.evaluations,
        "stopped_early": origin.stopped,
        "seconds": time.perf_counter() - origin.started,
        "validation": {
            "samples": len(subject.validation),
            "kind": origin.validation,
            "original_accuracy": subject.accuracy,
            "compressed_accuracy": subject.measure(plan).accuracy if recovered is None else recovered.accuracy,
        },
        "repair": asdict(subject.bank.repair),
        "recovery": None if recovered is None else recovered.report(),
        "machine": {"system": platform.platform(), "processors": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: found.version for name in VERSIONED for found in metadata.distributions(name=name)},
        "original": original,
        "uniform_int8": uniform,
        "compressed": compressed,
        "layers": _layers(subject, plan, origin.refused),
    }


def _share(after: float, before: float) -> float | None:
    """Returns None where the layer as it was takes nothing that could be measured."""
    return float(after / before) if before > 0 else None


def _layers(subject: Subject, plan: Plan, refused: Mapping[str, str]) -> list[dict[str, Any]]:
    """The recipe of each layer with its prices against `identity`, then the layers left as they are and why."""
    table, rows = subject.table, []
    state = subject.bank.state(plan)
    for index, layer in enumerate(subject.layers):
        recipe = str(plan[layer.name])
        legal = len(legal_recipes(layer, subject.network.modules[layer.name]))
        choices = {"legal": legal, "offered": int(table.legal[index].sum())}
        row: dict[str, Any] = {"name": layer.name, "recipe": recipe, "choices": choices}
        if recipe in table.recipes[index]:
            slot = table.recipes[index].index(recipe)
            before, after = table.cost[:, index, 0, 0, 0], table.cost[:, index, slot, 0, 0]
            row["price"] = {
                **{name: _share(*pair) for name, *pair in zip(METRICS, after, before, strict=True)},
                "estimated_accuracy_drop": float(table.drop[index, slot]),
            }
        elif recipe != "identity":
            row["unpriced"] = OFF_TABLE
        if any(group in layer.reads for group, _ in state):
            row["note"] = "reads fewer channels than in the original"
        if layer.name in refused:
            row["refused"] = refused[layer.name]
        if layer.uncut is not None:
            row["not_pruned"] = layer.uncut
        not_run = {recipe: reason for name, recipe, reason in table.refused if name == layer.name}
        if not_run:
            row["not_run"] = not_run
        rows.append(row)
    rows += [{"name": name, "recipe": "identity", "note": reason} for name, reason in subject.network.skipped.items()]
    return rows
