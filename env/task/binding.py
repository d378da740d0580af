"""A task for one network: its data read, and all that it gives tried on the first batch before hours are spent."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.errors import ConfigurationError, ModelError
from plywise.env.task.batch import Batch, items_in, mapped, shapes_of
from plywise.env.task.forward import Forward, rule_for
from plywise.env.task.function_digest import function_digest
from plywise.env.task.judge import Judge, Loss, Reference
from plywise.env.task.metrics import Metric, UserMetric, agreement
from plywise.env.task.outputs import checked_distance, default_distance, floats_in, logits_in
from plywise.env.task.reading import batches_of, calibration_batches
from plywise.env.task.samples import Samples
from plywise.env.task.steadiness import check_steady
from plywise.env.task.task import Task


@dataclass(frozen=True, eq=False)
class BoundTask:
    """A task for one network.

    Attributes:
        calibration: the first items, in memory.
        training: all of the calibration data.
        validation, test: what plans and the report are scored on.
        validation_kind: in words, where the validation items come from.
        notes: what a user should know, a sentence each.
    """

    calibration: Samples
    training: Samples
    validation: Samples
    test: Samples
    validation_kind: str
    notes: tuple[str, ...]


def bind(task: Task, model: nn.Module) -> BoundTask:
    """Reads the data of a task as far as needed and checks all that it gives on the first batch.

    Args:
        task: what a user gives.
        model: the original network, in eval mode, in float32 on the CPU.

    Raises:
        DataError: where there are no data, or not the same ones each time.
        ModelError: where the network does not run on a batch or puts out no numbers.
        ConfigurationError: where a function does not do what it must.
    """
    notes: list[str] = []
    calibration, training, held_out = calibration_batches(task)
    validation: Iterable[Batch]
    if task.validation is None:
        validation, kind = held_out, "held out of the calibration data"
        notes.append(
            f"no validation data were given: {sum(map(items_in, held_out))} items are held out of the calibration data"
        )
    else:
        validation, kind = batches_of(task.validation, "validation"), "given as validation data"
    test = validation if task.test is None else batches_of(task.test, "test")
    if task.test is None:
        notes.append("no test data were given: the figures of the report are of the validation data")
    forward = task.forward_step or rule_for(model, calibration[0])
    outputs = _first_outputs(model, forward, calibration[0])
    check_steady(model, forward, calibration[0])
    reference = Reference(model, forward)
    metric: Metric = agreement(reference)
    name = "agreement with the original"
    bounds: tuple[float, float] | None = (0.0, 100.0)
    if logits_in(outputs) is None:
        name, bounds = "agreement with the original (100 less the relative squared error)", None
    judge = Judge(
        forward,
        metric,
        default_distance(outputs) if task.distance is None else checked_distance(task.distance),
        task.loss,
        name,
        bounds=bounds if task.metric is None else None,
        faithful=task.metric is None,
        digest=_digest(task),
    )
    judge.distance(outputs, outputs)
    _check_loss(task.loss, model, forward, calibration[0])
    if task.metric is None:
        notes.append("no metric was given: the original is the reference, and drops are disagreement with it")
    else:
        judge = _with_metric(task, judge, model, validation, notes)
    return BoundTask(
        Samples(calibration, judge),
        Samples(training, judge),
        Samples(validation, judge),
        Samples(test, judge),
        kind,
        tuple(notes),
    )


def _with_metric(task: Task, judge: Judge, model: nn.Module, validation: Iterable[Batch], notes: list[str]) -> Judge:
    """Returns the judge with a user's metric, which is tried on one batch and then on all."""
    assert task.metric is not None
    tried = UserMetric(task.metric)
    tried.score(model, list(itertools.islice(validation, 1)), judge.forward)
    found = tried.score(model, validation, judge.forward)  # type: ignore[arg-type]
    if found.values is None:
        notes.append("the metric gives a plain number: no plan is stopped early")
    point = task.point or (1.0 if task.unit == "%" else abs(found.value) / 100.0)
    if point == 0:
        raise ConfigurationError(
            f"the original reaches 0 {task.unit}, so a hundredth of it makes no point; give Task(point=...), how much "
            f"of the metric makes one point of drop"
        )
    bounds = None if task.bounds is None else (task.bounds[0] / point, task.bounds[1] / point)
    return replace(
        judge,
        metric=UserMetric(task.metric, point),
        name=task.name or tried.name,
        unit=task.unit,
        point=point,
        bounds=bounds,
    )


def _first_outputs(model: nn.Module, forward: Forward, batch: Batch) -> Any:
    try:
        with torch.no_grad():
            outputs = forward(model, mapped(batch, Tensor.clone))
    except Exception as error:  # a user's forward may raise anything
        raise ModelError(
            f"the network does not run on a batch ({shapes_of(batch)}): {type(error).__name__}: {error}. Give batches "
            "as its forward takes them, or forward_step=(model, batch) -> outputs"
        ) from error
    if not floats_in(outputs):
        raise ModelError(f"the network puts out {shapes_of(outputs)}, no tensor of floats; nothing can be judged")
    if not all(bool(tensor.isfinite().all()) for tensor in floats_in(outputs)):
        raise ModelError(f"some outputs are no numbers{_first_broken(model, forward, batch)}; check weights and data")
    return outputs


def _first_broken(model: nn.Module, forward: Forward, batch: Batch) -> str:
    """Returns in words which module is the first to put out what is no number."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, outputs: Any) -> None:
            if not all(bool(tensor.isfinite().all()) for tensor in floats_in(outputs)):
                found.append(name)

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not any(True for _ in module.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        with torch.no_grad():
            forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return f" from the layer {found[0]!r} on" if found else ""


def _check_loss(loss: Loss | None, model: nn.Module, forward: Forward, batch: Batch) -> None:
    if loss is None:
        return
    with torch.no_grad():
        outputs = forward(model, batch)
        try:
            found = loss(outputs, batch)
        except Exception as error:  # a user's function may raise anything
            raise ConfigurationError(
                f"the loss raises {type(error).__name__}: {error}; it is called as loss(outputs, batch)"
            ) from error
    if not isinstance(found, Tensor) or found.numel() != 1 or not bool(found.isfinite().all()):
        shown = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ConfigurationError(f"the loss returns {shown}; it must return a finite scalar tensor")


def _digest(task: Task) -> str:
    functions = (task.forward_step, task.metric, task.distance, task.loss)
    return "".join(function_digest(each) for each in functions if each is not None)
