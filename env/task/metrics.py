"""How good a network is on batches: by right answers, by agreement with the original, or by a user's own function.

All figures inside are in *points*: percent for accuracies; of any other metric, `point` units make one.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from plywise.compressors.errors import ConfigurationError, PlywiseError
from plywise.env.task.batch import Batch, items_in
from plywise.env.task.forward import Forward
from plywise.env.task.outputs import logits_in, relative_errors

MOST_ERROR = 10.0
"""Of an item's outputs, relative to the original's energy: an outlier counts for no more."""

SAME = 1e-4
"""How far, relative to it, a metric may lie from the mean of its values to be that mean."""

Enough = Callable[[Tensor], bool]
"""Told the values of some items, says whether the rest is not wanted."""


@dataclass(frozen=True)
class Score:
    """Of a network on samples.

    Attributes:
        value: points, higher is better.
        values: of each item `(n,)`, points, whose mean `value` is; None where a metric gives none.
    """

    value: float
    values: Tensor | None = None


class Metric(Protocol):
    """Scores networks."""

    def score(self, model: nn.Module, batches: Sequence[Batch], forward: Forward, enough: Enough | None) -> Score:
        """Returns the score on batches, or on the first of them if those are `enough`."""

    def chance(self, outputs: Any) -> float | None:
        """Returns what guessing reaches, points, given the original's outputs on a batch; None where unknown."""


class OutputMetric:
    """A metric that is the mean of a value an item, which follows from outputs and batch."""

    def __init__(self, values: Callable[[Any, Batch], Tensor], chance: Callable[[Any], float | None]) -> None:
        """Takes what gives values `(n,)`, points, and what gives those of guessing."""
        self._values, self._chance = values, chance

    def score(
        self, model: nn.Module, batches: Iterable[Batch], forward: Forward, enough: Enough | None = None
    ) -> Score:
        """See `Metric`."""
        found: list[Tensor] = []
        with torch.inference_mode():
            for batch in batches:
                found.append(self._values(forward(model, batch), batch))
                if enough is not None and enough(found[-1]):
                    break
        values = torch.cat(found)
        return Score(float(values.double().mean()), values)

    def chance(self, outputs: Any) -> float | None:
        """See `Metric`."""
        return self._chance(outputs)


def _guessing(outputs: Any) -> float:
    logits = logits_in(outputs)
    return 0.0 if logits is None else 100.0 / logits.shape[-1]


def right_answers() -> OutputMetric:
    """Returns the accuracy of a classifier on batches `(inputs, labels)`."""
    return OutputMetric(lambda outputs, batch: 100.0 * (outputs.argmax(1) == batch[1]), _guessing)


def agreement(reference: Callable[[Batch], Any]) -> OutputMetric:
    """Returns the agreement with the original: percent of equal answers, or 100 less the relative squared error.

    Args:
        reference: gives the original's outputs on a batch.
    """

    def values(outputs: Any, batch: Batch) -> Tensor:
        original = reference(batch)
        logits = logits_in(original)
        if logits is None:
            return 100.0 * (1.0 - relative_errors(outputs, original).nan_to_num(MOST_ERROR).clamp(max=MOST_ERROR))
        answers = logits_in(outputs)
        assert answers is not None
        same = 100.0 * (answers.argmax(-1) == logits.argmax(-1))
        return same if same.dim() == 1 else same.flatten(1).mean(1)

    return OutputMetric(values, _guessing)


class UserMetric:
    """A function `(model, batches) -> float`, or `(float, one value an item)`, of a user."""

    def __init__(self, function: Callable[[nn.Module, Iterable[Batch]], Any], point: float = 1.0) -> None:
        """Takes the function and how many of its units make a point."""
        self.function, self.point = function, point
        self.name = getattr(function, "__name__", type(function).__name__)

    def score(
        self, model: nn.Module, batches: Sequence[Batch], forward: Forward, enough: Enough | None = None
    ) -> Score:
        """See `Metric`; where some may be enough, it is asked for one part of the batches after the other.

        Raises:
            ConfigurationError: where the function raises, returns something else or no number, or trains the network.
        """
        if enough is None:
            return self._asked(model, batches)
        found: list[Tensor] = []
        for some in _portions(batches):
            values = self._asked(model, some).values
            if values is None:  # they have the metric for their mean for the original alone, so they bound nothing
                return self._asked(model, batches)
            found.append(values)
            if enough(values):
                break
        values = torch.cat(found)
        return Score(float(values.double().mean()), values)

    def chance(self, outputs: Any) -> float | None:
        """See `Metric`."""
        return None

    def _asked(self, model: nn.Module, batches: Iterable[Batch]) -> Score:
        ran: list[bool] = []
        handle = model.register_forward_pre_hook(lambda module, _: ran.append(module.training))
        with torch.no_grad():
            try:
                found = self.function(model, batches)
            except PlywiseError:
                raise
            except Exception as error:  # a user's function may raise anything
                raise ConfigurationError(
                    f"the metric {self.name!r} raises {type(error).__name__}: {error}; it is called as metric(model, "
                    "batches), with the network in eval mode and an iterable of the batches that were given"
                ) from error
            finally:
                handle.remove()
        if any(ran) or any(module.training for module in model.modules()):
            raise ConfigurationError(
                f"the metric {self.name!r} puts the network into training mode; it must leave model.training alone, "
                "for a network is judged as it is in use"
            )
        value, values = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        number = _number(value)
        if number is None:
            raise ConfigurationError(
                f"the metric {self.name!r} returns {type(found).__name__} {str(found)[:60]!r}; it must return a number "
                "(higher is better), or a tuple of the number and one value an item"
            )
        if math.isnan(number):
            raise ConfigurationError(
                f"the metric {self.name!r} returns nan; it must return a number for any network, also for a poor one"
            )
        return Score(number / self.point, self._values(values, number))

    def _values(self, values: Any, number: float) -> Tensor | None:
        if values is None:
            return None
        each = torch.as_tensor(values).detach().flatten().double()
        mean = float(each.mean()) if len(each) else math.nan
        return each / self.point if abs(mean - number) <= SAME * max(1e-3, abs(number)) else None


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    try:
        return float(value) if isinstance(value, Real) or hasattr(value, "__float__") else None
    except (TypeError, ValueError):
        return None


def _portions(batches: Sequence[Batch]) -> Iterable[Sequence[Batch]]:
    """Yields the batches up to an eighth, a quarter, half and all of the items."""
    total, start, seen, shares = sum(map(items_in, batches)), 0, 0, [1 / 8, 1 / 4, 1 / 2]
    for place, batch in enumerate(batches):
        seen += items_in(batch)
        if shares and seen >= shares[0] * total:
            yield batches[start : place + 1]
            start = place + 1
            shares = [share for share in shares if share * total > seen]
    if start < len(batches):
        yield batches[start:]
