"""Plywise: an agent that picks, for each layer of a network, how to compress it.

>>> import plywise
>>> report = plywise.compress(model, loader, "runs/mine", method="knapsack", limits={"drop": 1.0, "storage": 0.15})
>>> smaller = plywise.load("runs/mine", model)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from plywise.env.task.task import Task
    from plywise.experiments.front.front_folder import FrontFolder

__version__ = "0.1.0"


OWN = ("given", "data", "task", "out", "memory", "demand", "front", "pick", "knee")
"""Arguments of `compress` that are no options by themselves."""


def compress(
    model: "nn.Module | str | None" = None,
    calibration: "Iterable[Any] | Task | str | None" = None,
    out: str | Path = "",
    *,
    data: str | None = None,
    task: "Task | str | None" = None,
    validation: "Iterable[Any] | None" = None,
    test: "Iterable[Any] | None" = None,
    forward_step: "Callable[[nn.Module, Any], Any] | None" = None,
    metric: "Callable[[nn.Module, Iterable[Any]], Any] | None" = None,
    distance: "Callable[[Any, Any], Tensor] | None" = None,
    loss: "Callable[[Any, Any], Tensor] | None" = None,
    unit: str = "%",
    limits: Mapping[str, float] | None = None,
    ignored: "str | type | Sequence[str | type]" = (),
    agent: str | Path | None = None,
    method: str | None = None,
    plan: "str | Path | Sequence[str | Path] | None" = None,
    front: str | Path | None = None,
    pick: int | None = None,
    knee: bool = False,
    weights: str | Path | None = None,
    evaluations: int = 4,
    seed: int = 0,
    recover: str | None = None,
    epochs: int | None = None,
    incremental: bool = False,
    gradients: str | None = None,
    gradients_of: str | Sequence[str] = (),
    device: str | Path | None = None,
    repair: str | Sequence[str] = (),
    memory: float | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    size: int | str | Sequence[int] | None = None,
    crop: float | None = None,
    channels: str | None = None,
    **demand: float | None,
) -> dict[str, Any]:
    """Compresses a network and returns the report that is also written to `out`.

    The network is left as it was: its mode, device, types of numbers and hooks.

    Args:
        model: an `nn.Module`, or `zoo:NAME`, `package.module:factory` or `path.py:factory`; may be left out where
            `front` says it.
        calibration: iterable of batches: tensors, tuples or dictionaries, with labels or without; the network is called
            as `model(x)`, `model(*x)` or `model(**x)` with what its forward takes. Or a `Task`, which holds all of
            this, or the name of a dataset.
        out: folder to write.
        data: `digits`, `mnist:PATH`, `cifar10:PATH` or `folder:PATH`, for a classifier of its images. It reads float
            images `(n, c, h, w)`, scaled to [0, 1] and normalised by `mean` and `std`, and gives one logit for each
            class, those of a folder in alphabetical order.
        task: a `Task` or `path.py:make_task`, a function of yours that returns one.
        validation: iterable of batches that plans are scored on; a part of `calibration` is held out where None.
        test: iterable of batches that are looked at once, for the report.
        forward_step: `(model, batch)` to outputs, where the rule above does not fit.
        metric: `(model, batches)` to a number, or to that and one value an item; higher is better. Agreement with the
            original where None.
        distance: `(outputs, original outputs)` to one value an item; the Kullback-Leibler divergence of logits, else
            the relative squared error, where None.
        loss: `(outputs, batch)` to a scalar, for `recover`; without it, `recover="distill"` learns from the original.
        unit: of the metric.
        limits: what must hold, by short names: `drop` (of the metric, in its unit), and `storage`, `latency`, `energy`
            (shares of the original's).
        ignored: layers to leave as they are: names, patterns of names such as `head*`, types.
        agent: folder of a trained agent.
        method: who searches where no agent is given, such as `knapsack`.
        plan: a plan to apply instead of searching, or a scheme: recipes by name pattern or type; of several files the
            last one wins.
        front: folder that `pareto` wrote; one of its plans is handed over, with network, data and device as they were
            there where not given and no ceiling that is not asked for.
        pick: number of that plan.
        knee: take the plan from which on further savings cost most accuracy.
        weights: a state dict, for a network that is given by name.
        evaluations: plans that are scored exactly, at most.
        seed: of every random choice.
        recover: `finetune` or `distill` (the original as the teacher) trains the compressed network on.
        epochs: passes of that over the training items, 3 where None.
        incremental: round weights portion by portion in it.
        gradients: what rounds gradients in it, such as `dynamic_fixed_point(width=8)`.
        gradients_of: which of them: `weights`, `biases`, `errors`, a list or one of them; all where empty.
        device: where the network will run: a declared device such as `raspberry-pi-4`, or a device file; this machine
            where None.
        repair: which parts of the repair of compressed networks are done, to see what each is worth: `means`,
            `deviations`, `least_squares`, a list or one of them, or `none`; all where empty.
        memory: GiB that compressed layers and outputs kept for the next score may take; a quarter of the machine's
            where None.
        mean: what is taken from each channel of a dataset's images after scaling to [0, 1], as when the network was
            trained, one number or one a channel; the dataset's usual one, or that of its training images, where None.
        std: what each channel is divided by then, likewise.
        size: height and width of a dataset's images that the network reads: one number for squares, two, or a text such
            as `192x256`. Images are resized until they just cover `size / crop`, keeping their proportions, and the
            middle is cut out. Must be given where images differ in size; as they are where None.
        crop: share of the resized image that is cut out; 0.875 where None, and 1 where all have the size already.
        channels: order of the channels that the network reads: `rgb`, `bgr` or `gray`; that of the images where None.
        demand: fields of `plywise.env.score.demand.Demand`, such as `max_storage=0.15`.

    Raises:
        PlywiseError: on anything that can be fixed; the message says how.
    """
    given = {
        "calibration": calibration,
        "validation": validation,
        "test": test,
        "forward_step": forward_step,
        "metric": metric,
        "distance": distance,
        "loss": loss,
        "unit": unit,
    }
    options = {name: value for name, value in locals().items() if name not in (*given, *OWN)} | demand
    from plywise.env.storage.memory import limit_memory
    from plywise.experiments.commands.compression_settings import make_compression
    from plywise.experiments.commands.given_data import data_of
    from plywise.experiments.compress_model import compress_model

    options |= data_of(given, data, task, out)
    if front is not None:
        from plywise.experiments.front.picking import picked_options

        options = picked_options(options, front, pick, knee)
    limit_memory(memory)
    return compress_model(make_compression(options), Path(out))


def pareto(
    model: "nn.Module | str",
    calibration: "Iterable[Any] | Task | str | None" = None,
    out: str | Path = "",
    *,
    data: str | None = None,
    task: "Task | str | None" = None,
    validation: "Iterable[Any] | None" = None,
    forward_step: "Callable[[nn.Module, Any], Any] | None" = None,
    metric: "Callable[[nn.Module, Iterable[Any]], Any] | None" = None,
    distance: "Callable[[Any, Any], Tensor] | None" = None,
    unit: str = "%",
    max_drop: float = 5.0,
    agent: str | Path | None = None,
    evaluations: int = 48,
    seed: int = 0,
    memory: float | None = None,
    **options: Any,
) -> "FrontFolder":
    """Finds what is attainable: the front over accuracy, bytes, latency and energy.

    The folder is renewed with every plan that is scored; an interrupted call goes on where it stopped.
    `compress(..., front=out, pick=N)`, or `knee=True`, hands a plan over.

    Args:
        model, calibration, data, task, validation, forward_step, metric, distance, unit: as in `compress`.
        out: folder to write.
        max_drop: points of accuracy, of other metrics hundredths of the original's value, that are worth looking at.
        agent: folder of a trained agent, whose walks are scored too where they promise most.
        evaluations: plans that are scored exactly, at most, besides the first uniform ones.
        seed: of every random choice.
        memory: as in `compress`.
        options: `weights`, `ignored`, `device`, `repair`, `mean`, `std`, `size`, `crop`, `channels`: as in `compress`.

    Returns:
        The folder, with `rows` for all plans, `front` and `knee`.

    Raises:
        PlywiseError: on anything that can be fixed; the message says how.
    """
    given = {
        "calibration": calibration,
        "validation": validation,
        "forward_step": forward_step,
        "metric": metric,
        "distance": distance,
        "unit": unit,
    }
    from plywise.env.storage.memory import limit_memory
    from plywise.experiments.commands.compression_settings import make_compression
    from plywise.experiments.commands.given_data import data_of
    from plywise.experiments.front.find_front import find_front

    options |= {"model": model, "agent": agent, "evaluations": evaluations, "seed": seed}
    options |= data_of(given, data, task, out)
    limit_memory(memory)
    return find_front(make_compression(options), max_drop, Path(out), options)


def load(path: str | Path, model: "nn.Module | str | None" = None) -> "nn.Module":
    """Returns a compressed network in eval mode, from its folder or its `weights.safetensors`. Executes no code in it.

    Args:
        path: what `compress` wrote.
        model: the original architecture (its weights do not matter), or its name as in `compress`; only needed for
            networks outside the zoo.

    Raises:
        PlywiseError: if the file is damaged or the architecture is not known.
    """
    from plywise.experiments.commands.option_kinds import checked_path
    from plywise.experiments.networks.loading import load_compressed

    return load_compressed(checked_path("path", path), model)


def __getattr__(name: str) -> Any:
    """Returns `Task`, late, as it brings torch along."""
    if name == "Task":
        from plywise.env.task.task import Task

        return Task
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
