"""What classifiers on batches `(inputs, labels)` are judged by and trained with."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Labelled = tuple[Tensor, Tensor]


def cross_entropy(logits: Tensor, batch: Labelled) -> Tensor:
    """Returns the mean cross entropy of logits `(n, classes)`, nats."""
    return F.cross_entropy(logits, batch[1])


def accuracy(model: nn.Module, batches: Iterable[Labelled]) -> tuple[float, Tensor]:
    """Returns the share of right classes, percent, and 100 or 0 for each item `(n,)`."""
    with torch.no_grad():
        values = torch.cat([100.0 * (model(inputs).argmax(1) == labels) for inputs, labels in batches])
    return float(values.double().mean()), values
