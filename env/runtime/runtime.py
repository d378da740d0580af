"""ONNX Runtime, always set up the same way: on one thread of the processor where nothing else is asked for."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

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


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one inference: median and quartiles."""

    median_ms: float
    low_ms: float
    high_ms: float


ONE_THREAD = Execution()
"""Of the processor: how models are run where nothing else is asked for."""

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


def run_session(session: onnxruntime.InferenceSession, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
    """Returns the output of one inference.

    Raises:
        ModelError: with the runtime's reason, where it fails.
    """
    try:
        outputs: NDArray[np.float32] = session.run(None, {"input": inputs})[0]
    except Exception as error:  # the runtime's exceptions share no base class
        raise ModelError(f"ONNX Runtime cannot run the model on inputs of shape {inputs.shape}: {error}") from error
    return outputs


def loaded_run(model: Path | bytes, shape: Sequence[int], execution: Execution = ONE_THREAD) -> Callable[[], object]:
    """Returns what runs a model once, on inputs of a shape with its batch.

    Raises:
        ModelError: with the runtime's reason, where it refuses the model; the run does where it fails.
    """
    session = open_session(model, execution)
    return partial(run_session, session, random_inputs(session, shape))


@timing()
def time_model(model: Path | bytes, shape: Sequence[int], execution: Execution = ONE_THREAD) -> float:
    """Returns the milliseconds of one run; raises as `loaded_run` and its run do, arguments as there."""
    return 1e3 * statistics.median(block_times(loaded_run(model, shape, execution), execution))


@timing()
def relative_time(
    model: Path | bytes,
    other: Path | bytes,
    shape: Sequence[int],
    execution: Execution = ONE_THREAD,
    loads: int = 1,
    precision: tuple[float, float] = (SPREAD, BUDGET_SECONDS),
) -> tuple[float, float]:
    """Times a model interleaved with another one.

    Args:
        model, other: files or serialised models.
        shape: of the inputs, with their batch.
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
        run, reference = loaded_run(model, shape, execution), loaded_run(other, shape, execution)
        blocks = relative_times(run, reference, execution, *precision)
        shares.append(statistics.median(blocks))
        varied.append(variation(blocks))
    return statistics.median(shares), statistics.median(varied)


@timing()
def time_models(
    paths: Sequence[Path], input_shape: Sequence[int], execution: Execution = ONE_THREAD, repeats: int = 100
) -> list[Timing]:
    """Times whole files, interleaved, so that a change of the machine's speed hits all of them alike.

    Args:
        paths: exported files with one input named `input`.
        input_shape: shape of the input with its batch.
        execution: how they are run.
        repeats: timed rounds, rounded up to a multiple of `LOADS`; each runs every file once.

    Raises:
        ModelError: where the runtime refuses a file or the inputs.
    """
    rounds = -(-repeats // LOADS)
    taken = np.concatenate([_rounds(paths, input_shape, execution, rounds) for _ in range(LOADS)])
    low, median, high = 1e3 * np.percentile(taken, (25, 50, 75), axis=0)
    return [Timing(float(m), float(a), float(b)) for m, a, b in zip(median, low, high, strict=True)]


def _rounds(
    paths: Sequence[Path], input_shape: Sequence[int], execution: Execution, rounds: int
) -> NDArray[np.float64]:
    """Returns the seconds that each file takes in each round, `(rounds, files)`."""
    sessions = [open_session(Path(path), execution) for path in paths]
    inputs = random_inputs(sessions[0], input_shape)
    for session in sessions * WARM_UP_RUNS:
        run_session(session, inputs)
    taken = np.empty((rounds, len(sessions)))
    for row in taken:
        for column, session in enumerate(sessions):
            start = time.perf_counter()
            session.run(None, {"input": inputs})
            row[column] = time.perf_counter() - start
    return taken


@timing()
def measure_energy(
    paths: Sequence[Path], input_shape: Sequence[int], counter: EnergyCounter, execution: Execution = ONE_THREAD
) -> list[float]:
    """Returns the millijoules of one inference of each file.

    Args:
        paths: exported files with one input named `input`.
        input_shape: shape of the input with its batch.
        counter: what counts.
        execution: how they are run.

    Raises:
        ModelError: where the runtime refuses a file or the inputs.
    """
    return counter.of_all([loaded_run(Path(path), input_shape, execution) for path in paths])


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


def accuracy_onnx(path: Path, images: Tensor, labels: Tensor, batch: int = 256) -> float:
    """Returns the top-1 accuracy of an exported file in percent.

    Args:
        path: the file, with a dynamic batch.
        images: `(n, ...)` normalised inputs.
        labels: `(n,)` classes.
        batch: images in one inference.
    """
    guesses = run_model(path, images, batch).argmax(1)
    return 100.0 * float((guesses == labels).float().mean())
