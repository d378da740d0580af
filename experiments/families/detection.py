"""Detection: boxes around the digits of an image, and which they are.

A batch is a dictionary of `images` `(n, 1, 24, 24)` and `targets` `(n, 3, 5)`, boxes as in `pasted_digits.py`. A
network puts out a list of maps `(n, 15, rows, columns)`, one a scale: of each cell whether a digit's centre lies in it
(a logit), where in the cell that is (right, down; 0 to 1), the logarithms of the box's sides by those usual at the
scale, and ten logits of digits, as detectors without anchors do (Ge et al., YOLOX, 2021, section 2.1).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.env.task.task import Task
from plywise.experiments.families.average_precision import mean_average_precision, overlaps
from plywise.experiments.families.pasted_digits import SIDE, pasted_digits

STRIDES = (4, 8)
"""Pixels of a cell, at each scale."""
USUAL = (8.0, 12.0)
"""Sides of a box, pixels, at each scale."""
BORDER = 11.0
"""Boxes whose longer side is larger are for the second scale."""
OUTPUTS = 15
"""Of a cell: 1 + 2 + 2 + 10."""
BATCH = 32
MOST_BOXES = 10
"""That are kept of an image, the best first."""
OVERLAP = 0.5
"""Of two boxes, intersection over union: more is the same digit."""
LEAST_SURE = 0.01
BOX_WEIGHT = 2.0

Batch = dict[str, Tensor]


def scenes(split: str) -> list[Batch]:
    """Returns the batches of a split, of 32 images."""
    found = pasted_digits(split)
    pairs = zip(torch.split(found.images, BATCH), torch.split(found.boxes, BATCH), strict=True)
    return [{"images": images, "targets": boxes} for images, boxes in pairs]


def detection_loss(outputs: Sequence[Tensor], batch: Batch) -> Tensor:
    """Returns the cross entropy of cells and digits plus the error of the boxes, a mean over the digits."""
    targets = batch["targets"]
    there = targets[..., 4] >= 0
    sides = targets[..., 2:4] - targets[..., :2]
    first = sides.amax(-1) <= BORDER
    total = torch.zeros(())
    for scale, maps in enumerate(outputs):
        image, which = torch.nonzero(there & (first if scale == 0 else ~first), as_tuple=True)
        centres = (targets[image, which, :2] + targets[image, which, 2:4]) / 2 / STRIDES[scale]
        column, row = centres.long().unbind(1)
        wanted = torch.zeros_like(maps[:, 0])
        wanted[image, row, column] = 1
        total = total + F.binary_cross_entropy_with_logits(maps[:, 0], wanted, reduction="sum")
        cells = maps[image, :, row, column]  # (digits, 15)
        boxes = torch.cat([centres - centres.floor(), (sides[image, which] / USUAL[scale]).log()], 1)
        total = total + BOX_WEIGHT * F.smooth_l1_loss(cells[:, 1:5], boxes, reduction="sum", beta=0.1)
        total = total + F.cross_entropy(cells[:, 5:], targets[image, which, 4].long(), reduction="sum")
    return total / there.sum()


def decoded(outputs: Sequence[Tensor]) -> Tensor:
    """Returns the boxes of all cells `(n, cells, 6)`: edges in pixels, the digit, and how sure the network is of it."""
    return torch.cat([_boxes(maps, scale) for scale, maps in enumerate(outputs)], 1)


def _boxes(maps: Tensor, scale: int) -> Tensor:
    _, _, rows, columns = maps.shape
    corner = torch.stack(torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy"))  # (2, rows, columns)
    centre = (maps[:, 1:3] + corner) * STRIDES[scale]
    half = maps[:, 3:5].clamp(max=2).exp() * USUAL[scale] / 2
    sure, digit = maps[:, 5:].softmax(1).max(1)
    edges = torch.cat([centre - half, centre + half], 1).clamp(0, SIDE)
    found = torch.cat([edges, digit[:, None], (sure * maps[:, 0].sigmoid())[:, None]], 1)
    return found.flatten(2).transpose(1, 2)


def best_boxes(boxes: Tensor) -> Tensor:
    """Returns the boxes that one is surest of, without those that overlap a surer one, `(n, 10, 6)`; else -1."""
    left, images = boxes.clone(), torch.arange(len(boxes))
    found = []
    for _ in range(MOST_BOXES):
        surest = left[..., 5].argmax(1)
        best = left[images, surest]  # (n, 6)
        found.append(torch.where(best[:, 5:] < LEAST_SURE, -1.0, best))
        left[images, surest, 5] = -1
        left[..., 5] = left[..., 5].where(overlaps(left, best[:, None]) <= OVERLAP, -1.0)
    return torch.stack(found, 1)


def average_precision(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Returns the mean average precision at an overlap of 0.5, percent; a figure of a set of images, not of each."""
    with torch.no_grad():
        found = [(best_boxes(decoded(model(batch["images"]))), batch["targets"]) for batch in batches]
    return mean_average_precision(*(torch.cat(column) for column in zip(*found, strict=True)))


def detection_divergence(outputs: Sequence[Tensor], original: Sequence[Tensor]) -> Tensor:
    """Returns how far maps are from the original's in an image `(n,)`, nats.

    That is the divergence of whether a cell holds a digit and, as far as the original sees one there, that of which it
    is and the error of its box: the terms of the loss, with the original's answers for targets.
    """
    total = torch.zeros(len(original[0]))
    for after, before in zip(outputs, original, strict=True):
        there = before[:, 0].sigmoid()
        sure = F.binary_cross_entropy_with_logits(before[:, 0], there, reduction="none")
        cells = F.binary_cross_entropy_with_logits(after[:, 0], there, reduction="none") - sure
        pair = F.log_softmax(after[:, 5:], 1), F.log_softmax(before[:, 5:], 1)
        digits = F.kl_div(*pair, reduction="none", log_target=True).sum(1)
        boxes = F.smooth_l1_loss(after[:, 1:5], before[:, 1:5], reduction="none", beta=0.1).sum(1)
        total += (cells.clamp(min=0) + there * (digits + BOX_WEIGHT * boxes)).sum((1, 2))
    return total


def make_task() -> Task:
    """Returns the task of finding digits and telling which they are."""
    train, validation, test = scenes("train"), scenes("validation"), scenes("test")
    return Task(train, validation, test, metric=average_precision, loss=detection_loss, distance=detection_divergence)
