"""How one network is run on batches and what its outputs are judged by."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.env.task.batch import Batch, mapped, tensors_in
from plywise.env.task.forward import CallByRule, Forward
from plywise.env.task.metrics import Metric, right_answers
from plywise.env.task.outputs import Distance, divergences, logits_in

Loss = Callable[[Any, Batch], Tensor]
"""What training makes small: a scalar, of outputs and their batch."""

MOST_BYTES = 512 * 2**20
"""Of the original's outputs that are kept for comparison."""


@dataclass(frozen=True)
class Judge:
    """What is asked of a network.

    Attributes:
        forward: runs it on a batch.
        metric: how good it is, in points.
        distance: of its outputs from the original's.
        loss: of a user's training; None where there is none.
        name, unit: of the metric, in words.
        point: units of the metric that make a point.
        bounds: between which values of an item lie, points; None where they are not known.
        faithful: whether the metric is agreement with the original, for there is no other.
        digest: of the user's functions, for the cache.
    """

    forward: Forward
    metric: Metric
    distance: Distance
    loss: Loss | None = None
    name: str = "accuracy"
    unit: str = "%"
    point: float = 1.0
    bounds: tuple[float, float] | None = None
    faithful: bool = False
    digest: str = ""

    def objective(self, outputs: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """Returns a scalar whose gradients tell how much an output matters.

        That is the user's loss, else that of labels drawn from the network's own logits (the Fisher matrix: Martens,
        New Insights and Perspectives on the Natural Gradient Method, 2020, section 5), else of outputs times random
        signs (the same for outputs with normal errors).
        """
        if self.loss is not None:
            return self.loss(outputs, batch)
        logits = logits_in(outputs)
        if logits is not None:
            flat = logits.flatten(0, -2)
            drawn = torch.multinomial(flat.detach().softmax(1), 1, generator=generator).flatten()
            return F.cross_entropy(flat, drawn)
        found = [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point() and tensor.requires_grad]
        sums = [_signed(tensor, generator) for tensor in found]
        return torch.stack(sums).sum() if sums else torch.zeros((), requires_grad=True)

    def shown(self, points: float) -> str:
        """Returns a score in words, in the metric's unit: `98.33 %`, `0.4981 R2`."""
        value = points * self.point
        return f"{value:.2f} {self.unit}" if self.unit == "%" else f"{value:.4g} {self.unit}"


def _signed(tensor: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(2, tensor.shape, generator=generator).to(tensor.dtype) * 2 - 1
    size = tensor.detach().square().mean().sqrt().clamp(min=1e-12)
    total: Tensor = (tensor * signs).sum() / (
        size * max(1, tensor[0].numel() if tensor.dim() else 1) ** 0.5 * len(tensor)
    )
    return total


def _cross_entropy(outputs: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(outputs, batch[1])


CLASSIFIER = Judge(CallByRule(), right_answers(), divergences, _cross_entropy)
"""Of a classifier on batches `(inputs, labels)`, by the share of right answers."""


class Reference:
    """The original's outputs, kept as far as memory allows."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        """Takes the original and how it runs."""
        self._model, self._forward = model, forward
        self._kept: OrderedDict[int, tuple[Batch, Any]] = OrderedDict()
        self._bytes = 0

    def __call__(self, batch: Batch) -> Any:
        """Returns the outputs on a batch."""
        if id(batch) in self._kept:
            return self._kept[id(batch)][1]
        with torch.inference_mode():
            outputs = self._forward(self._model, batch)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(outputs))
        if self._bytes + size <= MOST_BYTES:
            self._bytes += size
            self._kept[id(batch)] = batch, outputs  # with the batch, whose id stays its own so
        return outputs


class Silenced(nn.Module):
    """A network whose outputs are all zero: what guessing comes to, as far as a metric can tell."""

    def __init__(self, model: nn.Module) -> None:
        """Takes the network that says what outputs look like."""
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns zeros."""
        return mapped(self.model(*args, **kwargs), torch.zeros_like)
