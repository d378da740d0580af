"""What is told from outputs without the user's help: whether they are logits, and how far apart two of them are."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from plywise.compressors.errors import ConfigurationError
from plywise.env.task.batch import tensors_in

Distance = Callable[[Any, Any], Tensor]
"""How far outputs are from the original's on the same batch: one value an item, at least 0."""

ROUNDING = 1e-4
"""By so much a distance may fall below 0, for sums of floats are not exact."""

LEAST_ENERGY = 1e-12
"""Of outputs, relative to which errors are measured."""


def logits_in(outputs: Any) -> Tensor | None:
    """Returns the logits `(n, ..., classes)` of outputs, or None where they are something else.

    That is a lone tensor `(n, classes)` of at least two, or what a mapping or dataclass calls `logits`.
    """
    if isinstance(outputs, Tensor):
        return outputs if outputs.dim() == 2 and outputs.shape[1] > 1 and outputs.is_floating_point() else None
    named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    return named if isinstance(named, Tensor) and named.dim() > 1 and named.shape[-1] > 1 else None


def floats_in(outputs: Any) -> list[Tensor]:
    """Returns the tensors of floats among outputs."""
    return [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]


def divergences(outputs: Any, original: Any) -> Tensor:
    """Returns the Kullback-Leibler divergence of each item's logits from the original's `(n,)`, nats.

    Where an item has many logits, such as one set a token, that is their mean.
    """
    after, before = logits_in(outputs), logits_in(original)
    assert after is not None
    assert before is not None
    found = F.kl_div(F.log_softmax(after, -1), F.log_softmax(before, -1), reduction="none", log_target=True).sum(-1)
    return found if found.dim() == 1 else found.flatten(1).mean(1)


def relative_errors(outputs: Any, original: Any) -> Tensor:
    """Returns the squared error of each item's outputs `(n,)`, relative to the mean energy of the original's.

    Of several tensors it is the mean. What no two items share, such as the number of boxes, counts as an error of one.
    """
    pairs = list(zip(floats_in(outputs), floats_in(original), strict=False))
    found = [_relative(*pair) for pair in pairs if pair[1].numel()]
    count = max((len(each) for each in found), default=1)
    return (
        torch.stack([each.expand(count) if len(each) == 1 else each for each in found]).mean(0)
        if found
        else (torch.zeros(count))
    )


def _relative(outputs: Tensor, original: Tensor) -> Tensor:
    if outputs.shape != original.shape:
        return torch.ones(1)
    rows = original.reshape(len(original), -1) if original.dim() else original.reshape(1, 1)
    errors = (outputs.reshape(rows.shape) - rows).square().mean(1)
    centred = (rows - rows.mean(0)).square().mean() if len(rows) > 1 else rows.square().mean()
    energy = max(float(centred), 1e-3 * float(rows.square().mean()), LEAST_ENERGY)
    return errors / energy


def checked_distance(distance: Distance) -> Distance:
    """Returns a user's distance that says what is wrong with what it returns.

    Raises:
        ConfigurationError: by the returned function, where it raises, or its values are negative, no numbers, or not
            one an item.
    """

    def checked(outputs: Any, original: Any) -> Tensor:
        try:
            found = torch.as_tensor(distance(outputs, original))
        except Exception as error:  # a user's function may raise anything
            raise ConfigurationError(
                f"the distance raises {type(error).__name__}: {error}; it is called as distance(outputs, original)"
            ) from error
        count = next((len(tensor) for tensor in tensors_in(original) if tensor.dim()), 1)
        if tuple(found.shape) != (count,):
            raise ConfigurationError(
                f"the distance returns the shape {tuple(found.shape)}; it must return one value for each of the "
                f"{count} items of a batch, ({count},)"
            )
        if bool((found < -ROUNDING).any()) or bool(found.isnan().any()):
            raise ConfigurationError(
                f"the distance returns {float(found.min()):.3g}; it must be at least 0, and 0 for equal outputs"
            )
        return found.clamp(min=0.0)

    return checked


def default_distance(original: Any) -> Distance:
    """Returns the divergence where the original puts out logits, else the relative squared error."""
    return relative_errors if logits_in(original) is None else divergences
