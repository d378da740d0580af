"""What a user gives: data, how the network is run on them, and how it is judged."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from plywise.compressors.errors import ConfigurationError
from plywise.compressors.plain_values import as_number
from plywise.env.task.batch import Batch
from plywise.env.task.forward import Forward
from plywise.env.task.judge import Loss
from plywise.env.task.outputs import Distance

UserFunction = Callable[[nn.Module, Iterable[Batch]], Any]


@dataclass(frozen=True, eq=False)
class Task:
    """What a network is for.

    Batches are tensors, tuples or mappings: the network is called as `model(x)`, `model(*x)` or `model(**x)` with what
    its forward takes; labels may be among them.

    Attributes:
        calibration: iterable of batches like those that the network was trained on; it is read several times.
        validation: iterable of batches that plans are scored on; a part of `calibration` is held out where None.
        test: iterable of batches that are looked at once, for the report; `validation` again where None.
        forward_step: `(model, batch)` to outputs, where the rule above does not fit.
        metric: `(model, batches)` to a number, or to that and one value an item whose mean it is; higher is better.
            Where None, agreement with the original, in percent.
        distance: `(outputs, original outputs)` to one value an item, at least 0. Where None, the Kullback-Leibler
            divergence of logits, else the relative squared error.
        loss: `(outputs, batch)` to a scalar that training makes small; used by recovery and to rank channels. Without
            it, recovery distils the original.
        unit: of the metric, such as `%`, `mIoU`, `bits per byte`.
        point: how much of the unit makes one point of drop; 1 for percent, else a hundredth of the original's value.
        bounds: between which values of an item lie, in the unit; they let poor plans be stopped early.
        name: of the metric; that of the function where empty.
    """

    calibration: Iterable[Batch]
    validation: Iterable[Batch] | None = None
    test: Iterable[Batch] | None = None
    forward_step: Forward | None = None
    metric: UserFunction | None = None
    distance: Distance | None = None
    loss: Loss | None = None
    unit: str = "%"
    point: float | None = None
    bounds: tuple[float, float] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        for what in ("calibration", "validation", "test"):
            if what == "calibration" or getattr(self, what) is not None:
                _check_iterable(getattr(self, what), what)
        for what in ("forward_step", "metric", "distance", "loss"):
            given = getattr(self, what)
            if given is not None and not callable(given):
                raise ConfigurationError(f"{what} is a {type(given).__name__} and must be a function")
        if not isinstance(self.unit, str) or not self.unit:
            raise ConfigurationError(f"unit={self.unit!r} must be a text, such as '%' or 'mIoU'")
        point = as_number(self.point)
        if self.point is not None and not (point is not None and 0 < point < math.inf):
            raise ConfigurationError(f"point={self.point!r} must be a number above 0, in {self.unit}")
        object.__setattr__(self, "point", point)
        if self.bounds is not None:
            object.__setattr__(self, "bounds", _checked_bounds(self.bounds))
        if not isinstance(self.name, str):
            raise ConfigurationError(f"name={self.name!r} must be a text")
        if self.metric is None and self.unit != "%":
            raise ConfigurationError(f"unit={self.unit!r} has no meaning without a metric; give one, or leave it out")


def _checked_bounds(given: Any) -> tuple[float, float]:
    ends = tuple(map(as_number, given)) if isinstance(given, list | tuple) else ()
    if len(ends) != 2 or None in ends or not -math.inf < ends[0] < ends[1] < math.inf:  # type: ignore[operator]
        raise ConfigurationError(f"bounds={given!r} must be two numbers, the lower one first, such as (0.0, 100.0)")
    return ends  # type: ignore[return-value]


def _check_iterable(given: Any, what: str) -> None:
    if isinstance(given, Tensor | Mapping | str | bytes) or not hasattr(given, "__iter__"):
        raise ConfigurationError(
            f"{what} is a {type(given).__name__} and must be an iterable of batches, such as a DataLoader or a list of "
            "tensors, tuples or dictionaries"
        )
    if iter(given) is given:
        raise ConfigurationError(
            f"{what} is a {type(given).__name__}, which can be read once only; give something that starts anew each "
            "time, such as a DataLoader or list(...) of it"
        )
