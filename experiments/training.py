"""A plain, fast training loop for small networks on small images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.experiments.dataset import Split
from plywise.experiments.progress import tracked


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained: AdamW under a one-cycle learning rate.

    Attributes:
        epochs: passes over the training images.
        batch_size: images of a step.
        learning_rate: at its peak.
        weight_decay: of AdamW.
        seed: of the initial weights, the order of the images and their shifts.
    """

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 0.05
    seed: int = 0


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seeds torch and uses one thread inside; both are as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads would depend on how many there are
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def fit(network: nn.Module, split: Split, settings: TrainingSettings, description: str) -> None:
    """Trains a network in place on images shifted at random by at most one pixel; leaves it in eval mode.

    Args:
        network: maps `(n, c, h, w)` float32 to logits `(n, classes)`.
        split: the images to train on.
        settings: how.
        description: for the progress bar.
    """
    shifts, labels = shifted(split), split.labels
    optimizer = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    steps = len(labels) // settings.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.epochs * steps
    )
    network.train()
    for _ in tracked(range(settings.epochs), description):
        # A last batch of few images would upset BatchNorm, so it is left out; every epoch leaves out others.
        for batch in torch.randperm(len(labels))[: steps * settings.batch_size].view(steps, -1):
            inputs = shifts[torch.randint(len(shifts), batch.shape), batch]
            loss = F.cross_entropy(network(inputs), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    network.eval()


def shifted(split: Split) -> Tensor:
    """Returns the normalised images shifted by -1, 0 and 1 pixels both ways, `(9, n, c, h, w)`; black moves in."""
    height, width = split.images.shape[2:]
    padded = F.pad(split.images, (1, 1, 1, 1))
    offsets: Sequence[tuple[int, int]] = [(top, left) for top in range(3) for left in range(3)]
    return torch.stack(
        [
            Split(padded[:, :, top : top + height, left : left + width], split.labels, split.mean, split.std).inputs()
            for top, left in offsets
        ]
    )
