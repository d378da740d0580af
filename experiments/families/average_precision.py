"""How good detected boxes are (Everingham et al., The PASCAL Visual Object Classes Challenge, 2015, section 4.2)."""

import torch
from torch import Tensor

OVERLAP = 0.5
"""With a box of the same class, from which on a detection is right."""


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Returns the intersection over union of boxes; both `(..., 4 or more)`: left, top, right and bottom edge."""
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:4], others[..., 2:4])
    both = (high - low).clamp(min=0).prod(-1)
    return both / (_areas(boxes) + _areas(others) - both).clamp(min=1e-9)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:4] - boxes[..., :2]).clamp(min=0).prod(-1)


def mean_average_precision(found: Tensor, targets: Tensor) -> float:
    """Returns the mean over the classes of the area under precision against recall, percent.

    Args:
        found: boxes `(n, most, 6)`: edges, class, how sure; a class of -1 is none.
        targets: boxes `(n, most, 5)`: edges and class, likewise.
    """
    classes = torch.unique(targets[..., 4])
    areas = [_average_precision(found, targets, number) for number in classes[classes >= 0].tolist()]
    return 100 * sum(areas) / len(areas)


def _average_precision(found: Tensor, targets: Tensor, number: float) -> float:
    right, count = _right(found, targets, number)
    if not len(right):
        return 0.0
    hits = right.double().cumsum(0)
    precision = hits / torch.arange(1, len(right) + 1)
    # Of all that reaches a recall, the most precise counts.
    best = precision.flip(0).cummax(0).values.flip(0)
    return float(best[right].sum()) / count


def _right(found: Tensor, targets: Tensor, number: float) -> tuple[Tensor, int]:
    """Returns which detections of a class are right, the surest first `(m,)`, and how many there are to find.

    Each goes to the box of its class that it overlaps most, which counts once.
    """
    image, place = torch.nonzero(found[..., 4] == number, as_tuple=True)
    order = found[image, place, 5].argsort(descending=True, stable=True)
    image, boxes = image[order], found[image, place][order]
    wanted = targets[..., 4] == number  # (n, most)
    overlap = overlaps(boxes[:, None], targets[image]).where(wanted[image], 0.0)
    most, which = overlap.max(1) if len(overlap) else (torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    right = most >= OVERLAP
    taken: set[tuple[int, int]] = set()
    for row, key in enumerate(zip(image.tolist(), which.tolist(), strict=True)):
        if right[row]:
            right[row] = key not in taken
            taken.add(key)
    return right, int(wanted.sum())
