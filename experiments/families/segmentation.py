"""Segmentation: which digit each pixel of an image with several belongs to."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.env.task.task import Task
from plywise.experiments.families.pasted_digits import pasted_digits

CLASSES = 11
"""The background and ten digits."""
BATCH = 32

Labelled = tuple[Tensor, Tensor]


def masks(split: str) -> list[Labelled]:
    """Returns batches of images `(32, 1, 24, 24)` float32 and classes of their pixels `(32, 24, 24)` int64."""
    found = pasted_digits(split)
    return list(zip(torch.split(found.images, BATCH), torch.split(found.classes, BATCH), strict=True))


def pixel_loss(logits: Tensor, batch: Labelled) -> Tensor:
    """Returns the mean cross entropy of the pixels, nats, given logits `(n, classes, h, w)`."""
    return F.cross_entropy(logits, batch[1])


def mean_iou(model: nn.Module, batches: Iterable[Labelled]) -> float:
    """Returns the intersection over union of a class's pixels in all images, mean over the classes, percent.

    It is a figure of a set of images (Everingham et al., The PASCAL Visual Object Classes Challenge, 2015, section
    4.2), so no image has a value of its own. Classes that neither the network nor the labels name are left out.
    """
    counts = torch.zeros(CLASSES * CLASSES, dtype=torch.int64)
    with torch.no_grad():
        for images, classes in batches:
            pairs = classes * CLASSES + model(images).argmax(1)
            counts += torch.bincount(pairs.flatten(), minlength=CLASSES * CLASSES)
    table = counts.view(CLASSES, CLASSES).double()
    both = table.diagonal()
    either = table.sum(0) + table.sum(1) - both
    return 100 * float((both / either)[either > 0].mean())


def pixel_divergence(logits: Tensor, original: Tensor) -> Tensor:
    """Returns the divergence of logits `(n, classes, h, w)` from the original's, mean over the pixels `(n,)`, nats."""
    after, before = F.log_softmax(logits, 1), F.log_softmax(original, 1)
    return F.kl_div(after, before, reduction="none", log_target=True).sum(1).mean((1, 2))


def make_task() -> Task:
    """Returns the task of telling which digit each pixel belongs to."""
    return Task(
        masks("train"), masks("validation"), masks("test"), metric=mean_iou, loss=pixel_loss, distance=pixel_divergence
    )
