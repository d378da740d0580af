"""What is measured of the files, and one block of figures for each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from plywise.compressors.errors import ConfigurationError
from plywise.env.costs.chains import realised_chain
from plywise.env.costs.device import DECLARED
from plywise.env.costs.energy import energy_mj
from plywise.env.costs.latency import Chain
from plywise.env.costs.roofline import needed_bytes
from plywise.env.network.network import Network
from plywise.env.runtime.energy_counter import card_counter, processor_counter
from plywise.env.runtime.runtime import Inputs, Timing, measure_energy, running_model, time_models, timing_inputs
from plywise.env.runtime.target_program import CPU
from plywise.env.subject import Subject
from plywise.env.task.batch import Batch
from plywise.env.task.metrics import Score
from plywise.env.task.outputs import floats_in
from plywise.env.task.samples import Samples
from plywise.experiments.handover.checks import Checks
from plywise.experiments.handover.files import ONNX, REFUSED, NetworkFiles
from plywise.experiments.handover.running import Running

NOT_MEASURED = "not read: the runtime does not run the files"


@dataclass(frozen=True)
class Measured:
    """What the runtime shows of one ONNX file; None where it does not run it.

    Attributes:
        score: on the test samples.
        timing: on this machine.
        energy_mj: of one inference, where something counts it.
    """

    score: Score | None = None
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
    scores = {name: _score(subject, name, each, test, checks) for name, each in files.items()}
    running = [name for name, found in scores.items() if found is not None]
    paths = [files[name].onnx for name in running]
    way = Running.on(subject.latency.device, all(files[name].any_batch for name in running))
    names = ", ".join(running)
    timings = energies = None
    if running:
        inputs = timing_inputs(subject.network.interface, way.batch)
        timings = checks.attempt(f"{names}: can be timed", REFUSED, lambda: time_models(paths, inputs, way.execution))
        energies = checks.attempt(
            f"{names}: energy can be asked for", REFUSED, lambda: measured_energies(way, paths, inputs)
        )
    read, counter = energies or ([None] * len(paths), NOT_MEASURED)
    timed: Sequence[Timing | None] = timings or [None] * len(paths)
    found = {
        name: Measured(scores[name], timing, energy) for name, timing, energy in zip(running, timed, read, strict=True)
    }
    return Measurements({name: found.get(name, Measured()) for name in files}, way.batch, counter)


def _score(subject: Subject, name: str, files: NetworkFiles, test: Samples, checks: Checks) -> Score | None:
    if files.any_batch is None:
        return None
    return checks.attempt(f"{name}: {ONNX} runs", REFUSED, lambda: score_file(subject.network, files.onnx, test))


def score_file(network: Network, path: Path, test: Samples, optimised: bool = True) -> Score:
    """Returns the score of an exported file; nan where it puts out what is no number.

    Args:
        network: that was exported, or what it was made from.
        path: the file.
        test: samples.
        optimised: as for `running_model`.
    """
    finite = True
    judge = test.judge

    def watched(model: nn.Module, batch: Batch) -> Any:
        nonlocal finite
        outputs = judge.forward(model, batch)
        finite = finite and all(bool(tensor.isfinite().all()) for tensor in floats_in(outputs))
        return outputs

    running = running_model(path, network.interface, network.model, optimised)
    found = test.judged_by(replace(judge, forward=watched)).score(running)
    return found if finite else Score(math.nan)


def measured_energies(running: Running, paths: Sequence[Path], inputs: Inputs) -> tuple[list[float | None], str]:
    """Returns the measured energy of one input in each file, None where there is none, and what is said about counters.

    Args:
        running: how files are run.
        paths: exported files.
        inputs: of one run, as for `time_models`.
    """
    unread: list[float | None] = [None] * len(paths)
    if not running.is_device:
        return unread, "not read: the network will run on another device"
    processor = running.execution.provider == CPU
    try:
        counter = processor_counter() if processor else card_counter()
        runs = measure_energy(paths, inputs, counter, running.execution)
    except ConfigurationError as error:
        return unread, f"not read: {error}"
    what = "whole processor packages, with all that they do besides"
    if not processor:
        what = "the whole card, with all that it does besides, without the processor"
    return [run / running.batch for run in runs], f"read: {what}"


def figures(
    subject: Subject, model: nn.Module, score: Score, files: NetworkFiles, measured: Measured
) -> dict[str, Any]:
    """Returns the report's block of figures of one network; None stands for what could not be measured.

    Args:
        subject: the network under study.
        model: the network that the block is about.
        score: of it in torch on samples that nothing had looked at.
        files: what was written.
        measured: what the runtime shows of its ONNX file.
    """
    modules = dict(model.named_modules())
    layers = (*subject.layers, *subject.network.tied)
    chains = {layer.name: realised_chain(modules[layer.name], layer) for layer in layers}
    runs = {layer.name: layer.runs for layer in layers}
    device, timing, judge = subject.latency.device, measured.timing, subject.validation.judge
    block = {
        "accuracy": _told(measured.score, judge.point),
        "torch_accuracy": score.value * judge.point,
        "storage_bytes": files.weights_bytes,
        "onnx_bytes": _size(files.onnx),
        "onnx_xz_bytes": _size(files.shipped),
        "latency_ms": timing and timing.median_ms,
        "latency_quartiles_ms": timing and [timing.low_ms, timing.high_ms],
        "energy_mj": measured.energy_mj,
        "energy_source": "measured",
        "macs": sum(round(runs[name] * sum(each.macs for each in chain)) for name, chain in chains.items()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    if measured.energy_mj is None:
        energy = sum(runs[name] * energy_mj(chain, device.energies) for name, chain in chains.items())
        block |= {"energy_mj": energy, "energy_source": "modelled"}
    return block if device.is_here else block | _on_device(subject, list(chains.values()), list(runs.values()))


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _told(score: Score | None, point: float) -> float | None:
    """Returns a score in the metric's unit; None where there is none, or no number."""
    return None if score is None or math.isnan(score.value) else score.value * point


def _on_device(subject: Subject, chains: list[Chain], runs: list[float]) -> dict[str, Any]:
    """Returns what is known about a network, of whose layers each runs so often, on a device elsewhere."""
    latency, device = subject.latency, subject.latency.device
    found = {
        "device_latency_ms": float(latency.milliseconds(chains) @ np.array(runs)),
        "device_latency_source": latency.source_of(chains),
    }
    if device.latency_source == DECLARED:
        found |= {"energy_source": DECLARED}
    if device.memory_bytes is not None:
        needed = needed_bytes(chains)
        found |= {"memory_needed_bytes": int(needed), "fits_memory": needed <= device.memory_bytes}
    return found
