"""ONNX Runtime, always set up the same way: on one thread of the processor where nothing else is asked for."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from plywise.compressors.errors import ModelError
from plywise.env.runtime import target_program
from plywise.env.runtime.energy_counter import EnergyCounter
from plywise.env.runtime.target_program import (
    BUDGET_SECONDS,
    SPREAD,
    WARM_UP_RUNS,
    Execution,
    block_times,
    relative_times,
    variation,
)
from plywise.env.storage.timing_lock import timing
from plywise.env.task.batch import items_in, part
from plywise.env.task.interface import INPUT, Interface


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one inference: median and quartiles."""

    median_ms: float
    low_ms: float
    high_ms: float


ONE_THREAD = Execution()
"""Of the processor: how models are run where nothing else is asked for."""

Inputs = Sequence[int] | Mapping[str, NDArray[np.generic]]
"""What a file is timed on: random numbers of the shape of its only input, with the batch, or arrays by name."""

LOADS = 5
"""How often files are loaded anew while they are timed: twins of one file take times that differ by 2 to 7 % for as
long as both stay loaded."""


def open_session(
    model: Path | bytes, execution: Execution = ONE_THREAD, optimised: bool = True
) -> onnxruntime.InferenceSession:
    """Loads a file or a serialised model.

    Args:
        model: the file or its content.
        execution: how it is run.
        optimised: whether the runtime may change the graph, as it does in use.

    Raises:
        ModelError: with the runtime's reason, where it refuses the model.
    """
    source = str(model) if isinstance(model, Path) else model
    name = source if isinstance(source, str) else "the model"
    try:
        return target_program.open_session(source, execution, optimised)
    except Exception as error:  # the runtime's exceptions share no base class
        raise ModelError(f"ONNX Runtime cannot load {name}: {error}") from error


def random_inputs(session: onnxruntime.InferenceSession, shape: Sequence[int]) -> NDArray[np.generic]:
    """Returns inputs of a shape that a model can take: normal numbers, or zeros where it wants indices."""
    if session.get_inputs()[0].type == "tensor(int64)":
        return np.zeros(tuple(shape), np.int64)
    return np.random.default_rng(0).standard_normal(tuple(shape)).astype(np.float32)


def run_session(
    session: onnxruntime.InferenceSession, inputs: NDArray[np.generic] | Mapping[str, NDArray[np.generic]]
) -> NDArray[np.float32]:
    """Returns the first output of one inference; see `run_all`."""
    return run_all(session, inputs if isinstance(inputs, Mapping) else {INPUT: inputs})[0]


def run_all(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, NDArray[np.generic]]
) -> Sequence[NDArray[np.float32]]:
    """Returns the outputs of one inference.

    Args:
        session: what runs.
        inputs: by name.

    Raises:
        ModelError: with the runtime's reason, where it fails.
    """
    try:
        outputs: Sequence[NDArray[np.float32]] = session.run(None, dict(inputs))
    except Exception as error:  # the runtime's exceptions share no base class
        shapes = ", ".join(f"{name} {values.shape}" for name, values in inputs.items())
        raise ModelError(f"ONNX Runtime cannot run the model on inputs of shape {shapes}: {error}") from error
    return outputs


def running_model(path: Path, interface: Interface, model: nn.Module, optimised: bool = True) -> nn.Module:
    """Returns a network that is called as `model` is, but whose outputs an exported file computes.

    Args:
        path: the file.
        interface: how the network is called.
        model: the network.
        optimised: whether the runtime may change the graph, as it does in use.

    Raises:
        ModelError: with the runtime's reason, where it refuses the file; so does the network where it fails.
    """
    session = open_session(Path(path), optimised=optimised)
    sizes = {each.name: each.shape for each in session.get_inputs()}
    single = any(isinstance(shape[0], int) for name, shape in sizes.items() if interface.has_items(name))

    def once(tensors: Mapping[str, Tensor]) -> list[Tensor]:
        outputs = run_all(session, {name: tensors[name].numpy() for name in sizes})
        return [torch.from_numpy(output) for output in outputs]

    def run(tensors: dict[str, Tensor]) -> Sequence[Tensor]:
        if not single:
            return once(tensors)
        count = items_in(tensors)
        parts = [once(part(tensors, place, place + 1)) for place in range(count)]
        return [torch.cat(each) for each in zip(*parts, strict=True)]

    return interface.run_by(model, run)


def timing_inputs(interface: Interface, count: int) -> Inputs:
    """Returns what a network is timed on: random numbers where it takes one tensor, else items of its example."""
    inputs = interface.at(count)
    if interface.plain:
        return tuple(inputs[INPUT].shape)
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def loaded_run(model: Path | bytes, inputs: Inputs, execution: Execution = ONE_THREAD) -> Callable[[], object]:
    """Returns what runs a model once.

    Raises:
        ModelError: with the runtime's reason, where it refuses the model; the run does where it fails.
    """
    session = open_session(model, execution)
    return partial(run_all, session, _fed(session, inputs))


def _fed(session: onnxruntime.InferenceSession, inputs: Inputs) -> Mapping[str, NDArray[np.generic]]:
    return inputs if isinstance(inputs, Mapping) else {INPUT: random_inputs(session, inputs)}


@timing()
def time_model(model: Path | bytes, inputs: Inputs, execution: Execution = ONE_THREAD) -> float:
    """Returns the milliseconds of one run; raises as `loaded_run` and its run do, arguments as there."""
    return 1e3 * statistics.median(block_times(loaded_run(model, inputs, execution), execution))


@timing()
def relative_time(
    model: Path | bytes,
    other: Path | bytes,
    inputs: Inputs,
    execution: Execution = ONE_THREAD,
    loads: int = 1,
    precision: tuple[float, float] = (SPREAD, BUDGET_SECONDS),
) -> tuple[float, float]:
    """Times a model interleaved with another one.

    Args:
        model, other: files or serialised models.
        inputs: shape of the only one, with its batch, or all by name.
        execution: how they are run.
        loads: how often both are loaded anew; the median counts.
        precision: standard error that each load's result shall have, as a share of it, and seconds that it may take.

    Returns:
        The time of the model over that of the other one, and by how much it varies, as a share of it.

    Raises:
        ModelError: with the runtime's reason, where it refuses one of them or fails.
    """
    shares, varied = [], []
    for _ in range(loads):
        run, reference = loaded_run(model, inputs, execution), loaded_run(other, inputs, execution)
        blocks = relative_times(run, reference, execution, *precision)
        shares.append(statistics.median(blocks))
        varied.append(variation(blocks))
    return statistics.median(shares), statistics.median(varied)


@timing()
def time_models(
    paths: Sequence[Path], inputs: Inputs, execution: Execution = ONE_THREAD, repeats: int = 100
) -> list[Timing]:
    """Times whole files, interleaved, so that a change of the machine's speed hits all of them alike.

    Args:
        paths: exported files.
        inputs: shape of the only one, with its batch, or all by name.
        execution: how they are run.
        repeats: timed rounds, rounded up to a multiple of `LOADS`; each runs every file once.

    Raises:
        ModelError: where the runtime refuses a file or the inputs.
    """
    rounds = -(-repeats // LOADS)
    taken = np.concatenate([_rounds(paths, inputs, execution, rounds) for _ in range(LOADS)])
    low, median, high = 1e3 * np.percentile(taken, (25, 50, 75), axis=0)
    return [Timing(float(m), float(a), float(b)) for m, a, b in zip(median, low, high, strict=True)]


def _rounds(paths: Sequence[Path], inputs: Inputs, execution: Execution, rounds: int) -> NDArray[np.float64]:
    """Returns the seconds that each file takes in each round, `(rounds, files)`."""
    sessions = [open_session(Path(path), execution) for path in paths]
    fed = dict(_fed(sessions[0], inputs))
    for session in sessions * WARM_UP_RUNS:
        run_all(session, fed)
    taken = np.empty((rounds, len(sessions)))
    for row in taken:
        for column, session in enumerate(sessions):
            start = time.perf_counter()
            session.run(None, fed)
            row[column] = time.perf_counter() - start
    return taken


@timing()
def measure_energy(
    paths: Sequence[Path], inputs: Inputs, counter: EnergyCounter, execution: Execution = ONE_THREAD
) -> list[float]:
    """Returns the millijoules of one inference of each file.

    Args:
        paths: exported files.
        inputs: shape of the only one, with its batch, or all by name.
        counter: what counts.
        execution: how they are run.

    Raises:
        ModelError: where the runtime refuses a file or the inputs.
    """
    return counter.of_all([loaded_run(Path(path), inputs, execution) for path in paths])


def run_model(path: Path, images: Tensor, batch: int = 256, optimised: bool = True) -> Tensor:
    """Returns the outputs of an exported file for all inputs, in batches of a size, or of the one that the file takes.

    Args:
        path: the file.
        images: `(n, ...)` normalised inputs.
        batch: images in one inference.
        optimised: whether the runtime may change the graph, as it does in use.

    Raises:
        ModelError: with the runtime's reason, where it refuses the file or fails.
    """
    session = open_session(Path(path), optimised=optimised)
    fixed = session.get_inputs()[0].shape[0]
    batch = fixed if isinstance(fixed, int) else batch
    parts = [run_session(session, part.numpy()) for part in torch.split(images, batch)]
    return torch.from_numpy(np.concatenate(parts))
