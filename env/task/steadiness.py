"""Whether a network computes the same from the same inputs, and leaves them and itself as they were."""

from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.errors import ModelError
from plywise.env.task.batch import Batch, mapped, named_tensors
from plywise.env.task.forward import Forward
from plywise.env.task.outputs import floats_in

STEADY = 1e-4
"""Of the largest output: how far two runs on the same inputs may lie apart."""


def check_steady(model: nn.Module, forward: Forward, batch: Batch) -> None:
    """Runs a network twice on copies of a batch; without that, no file of it gives what was scored.

    Args:
        model: in eval mode; what its forward changes in it is put back.
        forward: runs it.
        batch: some inputs, which stay as they are.

    Raises:
        ModelError: where the forward writes over its inputs, changes parameters or buffers, or gives other outputs when
            it runs again.
    """
    state = {name: value.clone() for name, value in model.state_dict().items()}
    given = mapped(batch, Tensor.clone)
    with torch.no_grad():
        first = [each.clone() for each in floats_in(forward(model, given))]
        changed = [name for name, value in model.state_dict().items() if not _same(value, state[name])]
        if changed:
            raise ModelError(
                f"the forward changes {', '.join(changed[:3])} of the network each time it runs, so its outputs depend "
                "on what ran before; in eval mode (if not self.training) let it only read parameters and buffers"
            )
        before = named_tensors(batch)
        written = [name or "its input" for name, each in named_tensors(given).items() if not _same(each, before[name])]
        if written:
            raise ModelError(
                f"the forward writes over {', '.join(written[:3])}, so whoever reads the inputs again finds others: "
                "begin it with a copy (x = x.clone()), or write y = x * 2 in place of x.mul_(2)"
            )
        again = floats_in(forward(model, mapped(batch, Tensor.clone)))
    difference = max((apart(*pair) for pair in zip(again, first, strict=False)), default=0.0)
    difference = difference if len(again) == len(first) else float("inf")
    if not difference <= STEADY:
        raise ModelError(
            f"the network gives other outputs when it runs on the same inputs again (by {difference:.2g} of the "
            "largest); nothing in it may be random in eval mode: call .eval() and not .train(), write "
            "F.dropout(..., training=self.training), and draw no random numbers in forward"
        )


def apart(found: Tensor, expected: Tensor) -> float:
    """Returns the largest difference, as a share of the largest number that is expected; infinite for other shapes."""
    if found.shape != expected.shape:
        return float("inf")
    if not found.numel():
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def _same(one: Any, other: Any) -> bool:
    """Returns whether two tensors hold the same numbers, NaN among them."""
    if not isinstance(one, Tensor) or one.shape != other.shape:
        return not isinstance(one, Tensor)
    return bool(((one == other) | ((one != one) & (other != other))).all())
