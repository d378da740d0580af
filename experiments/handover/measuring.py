"""What is measured of the files, and one block of figures for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from plywise.compressors.errors import ConfigurationError
from plywise.env.costs.chains import realised_chain
from plywise.env.costs.device import DECLARED
from plywise.env.costs.energy import energy_mj
from plywise.env.costs.latency import Chain
from plywise.env.costs.roofline import needed_bytes
from plywise.env.runtime.energy_counter import card_counter, processor_counter
from plywise.env.runtime.runtime import Timing, measure_energy, run_model, time_models
from plywise.env.runtime.target_program import CPU
from plywise.env.subject import Subject
from plywise.env.task.samples import Samples
from plywise.experiments.handover.checks import Checks
from plywise.experiments.handover.files import ONNX, REFUSED, NetworkFiles
from plywise.experiments.handover.running import Running

NOT_MEASURED = "not read: the runtime does not run the files"


@dataclass(frozen=True)
class Measured:
    """What the runtime shows of one ONNX file; None where it does not run it.

    Attributes:
        outputs: `(n, classes)` on the test samples.
        timing: on this machine.
        energy_mj: of one inference, where something counts it.
    """

    outputs: Tensor | None = None
    timing: Timing | None = None
    energy_mj: float | None = None


@dataclass(frozen=True)
class Measurements:
    """What the runtime shows of all files.

    Attributes:
        files: by name of the network.
        batch: inputs of one timed run.
        counter: what is said about counters of energy.
    """

    files: Mapping[str, Measured]
    batch: int
    counter: str


def measure_files(subject: Subject, files: Mapping[str, NetworkFiles], test: Samples, checks: Checks) -> Measurements:
    """Runs and times ONNX files.

    Args:
        subject: the network under study.
        files: by name of the network.
        test: samples that nothing has looked at yet.
        checks: told which file does not run.
    """
    outputs = {name: _outputs(name, each, test, checks) for name, each in files.items()}
    running = [name for name, found in outputs.items() if found is not None]
    paths = [files[name].onnx for name in running]
    way = Running.on(subject.latency.device, all(files[name].any_batch for name in running))
    shape = tuple(subject.network.example.shape[1:])
    names = ", ".join(running)
    timings = checks.attempt(
        f"{names}: can be timed", REFUSED, lambda: time_models(paths, (way.batch, *shape), way.execution)
    )
    energies = checks.attempt(
        f"{names}: energy can be asked for", REFUSED, lambda: measured_energies(way, paths, shape)
    )
    read, counter = energies or ([None] * len(paths), NOT_MEASURED)
    timed: Sequence[Timing | None] = timings or [None] * len(paths)
    found = {
        name: Measured(outputs[name], timing, energy) for name, timing, energy in zip(running, timed, read, strict=True)
    }
    return Measurements({name: found.get(name, Measured()) for name in files}, way.batch, counter)


def _outputs(name: str, files: NetworkFiles, test: Samples, checks: Checks) -> Tensor | None:
    if files.any_batch is None:
        return None
    return checks.attempt(f"{name}: {ONNX} runs", REFUSED, lambda: run_model(files.onnx, test.inputs))


def measured_energies(
    running: Running, paths: Sequence[Path], input_shape: Sequence[int]
) -> tuple[list[float | None], str]:
    """Returns the measured energy of one input in each file, None where there is none, and what is said about counters.

    Args:
        running: how files are run.
        paths: exported files.
        input_shape: of one input.
    """
    unread: list[float | None] = [None] * len(paths)
    if not running.is_device:
        return unread, "not read: the network will run on another device"
    processor = running.execution.provider == CPU
    try:
        counter = processor_counter() if processor else card_counter()
        runs = measure_energy(paths, (running.batch, *input_shape), counter, running.execution)
    except ConfigurationError as error:
        return unread, f"not read: {error}"
    what = "whole processor packages, with all that they do besides"
    if not processor:
        what = "the whole card, with all that it does besides, without the processor"
    return [run / running.batch for run in runs], f"read: {what}"


def figures(
    subject: Subject, model: nn.Module, logits: Tensor, test: Samples, files: NetworkFiles, measured: Measured
) -> dict[str, Any]:
    """Returns the report's block of figures of one network; None stands for what could not be measured.

    Args:
        subject: the network under study.
        model: the network that the block is about.
        logits: `(n, classes)` of it in torch.
        test: samples that nothing has looked at yet.
        files: what was written.
        measured: what the runtime shows of its ONNX file.
    """
    modules = dict(model.named_modules())
    chains = {layer.name: realised_chain(modules[layer.name], layer) for layer in subject.layers}
    device, timing = subject.latency.device, measured.timing
    block = {
        "accuracy": None if measured.outputs is None else test.accuracy(measured.outputs),
        "torch_accuracy": test.accuracy(logits),
        "storage_bytes": files.weights_bytes,
        "onnx_bytes": files.onnx.stat().st_size if files.onnx.is_file() else None,
        "latency_ms": timing and timing.median_ms,
        "latency_quartiles_ms": timing and [timing.low_ms, timing.high_ms],
        "energy_mj": measured.energy_mj,
        "energy_source": "measured",
        "macs": sum(operation.macs for chain in chains.values() for operation in chain),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    if measured.energy_mj is None:
        energy = sum(energy_mj(chain, device.energies) for chain in chains.values())
        block |= {"energy_mj": energy, "energy_source": "modelled"}
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
