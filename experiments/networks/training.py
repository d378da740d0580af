"""A plain, fast training loop for small networks, on images that are distorted a little or on batches of a task."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.env.execution.progress import tracked
from plywise.env.storage.timing_lock import pause, working
from plywise.env.task.batch import items_in, joined, mapped
from plywise.env.task.forward import rule_for
from plywise.env.task.task import Task
from plywise.experiments.data.dataset import Split


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained: AdamW under a one-cycle learning rate.

    Attributes:
        epochs: passes over the training items.
        batch_size: items of a step.
        learning_rate: at its peak.
        weight_decay: of AdamW.
        seed: of the initial weights, the order of the items and what is random in training.
    """

    epochs: int = 15
    batch_size: int = 64
    learning_rate: float = 1e-2
    weight_decay: float = 0.1
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
    """Trains a network in place on images distorted a little at random; leaves it in eval mode.

    Args:
        network: maps `(n, c, h, w)` float32 to logits `(n, classes)`.
        split: the images to train on.
        settings: how.
        description: for the progress bar.
    """
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (split.mean, split.std))
    images, labels = split.images.to(torch.float32).div_(255), split.labels

    def loss(chosen: Tensor) -> Tensor:
        inputs = ((distorted(images[chosen]) - mean) / std).to(memory_format=torch.channels_last)
        return F.cross_entropy(network(inputs), labels[chosen])

    _minimise(loss, len(labels), network, settings, description)


def fit_task(network: nn.Module, task: Task, settings: TrainingSettings, description: str) -> None:
    """Trains a network in place on the calibration batches of a task; leaves it in eval mode.

    Args:
        network: takes the batches.
        task: says what is made small.
        settings: how.
        description: for the progress bar.
    """
    assert task.loss is not None
    minimised, everything = task.loss, joined(list(task.calibration))
    forward = rule_for(network, everything)

    def loss(chosen: Tensor) -> Tensor:
        batch = mapped(everything, lambda tensor: _laid_out(tensor[chosen]))
        return minimised(forward(network, batch), batch)

    _minimise(loss, items_in(everything), network, settings, description)


@working()
def _minimise(
    loss: Callable[[Tensor], Tensor], count: int, network: nn.Module, settings: TrainingSettings, description: str
) -> None:
    """Trains a network by a loss of some of `count` items, given their indices `(batch_size,)`."""
    optimizer = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    steps = count // settings.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.epochs * steps
    )
    # The order of memory makes it up to twice as fast on few channels and pixels.
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for _ in tracked(range(settings.epochs), description):
        # A last batch of few items would upset BatchNorm, so it is left out; every epoch leaves out others.
        for batch in torch.randperm(count)[: steps * settings.batch_size].view(steps, -1):
            found = loss(batch)
            optimizer.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            pause()
    network.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _laid_out(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def distorted(images: Tensor) -> Tensor:
    """Returns each image turned, scaled and shifted at random, by at most 0.1 radians, 5 % and one pixel.

    Args:
        images: `(n, c, h, w)` float32, 0 is the background that moves in.
    """
    count, _, height, width = images.shape
    angle, scale, right, down = torch.rand(4, count) * 2 - 1
    angle, scale = 0.1 * angle, 1 + 0.05 * scale
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([cosine, -sine, right * 2 / width, sine, cosine, down * 2 / height], 1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
