"""Stops running a plan over images as soon as those seen rule out that the plan is of any use.

After an eighth, a quarter and half of the images, as in successive halving (Jamieson and Talwalkar, Non-stochastic Best
Arm Identification and Hyperparameter Optimization, 2016). There, plans side by side lose against their better half;
here, plans come one after the other, and each loses against the best that is known. How many of all images a plan can
get right at most follows from those seen by the exact bound for draws without replacement (Clopper and Pearson, The Use
of Confidence or Fiducial Limits, 1934, with the hypergeometric distribution in place of the binomial one).
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from scipy.stats import hypergeom
from torch import Tensor

LOOKS = (1 / 8, 1 / 4, 1 / 2)
"""Shares of the images after which a plan is looked at."""

RISK = 1e-3
"""Chance that a plan is stopped for an accuracy that it would have reached, over all looks at it."""


def most_right(right: int, seen: int, total: int, risk: float) -> int:
    """Returns how many of `total` outputs can be right, where `right` of the `seen` ones are.

    Args:
        right: right outputs among those seen.
        seen: outputs seen, drawn at random from all.
        total: all outputs.
        risk: chance of a draw as poor as this one, where more are right than returned.
    """
    poor = range(right, right + total - seen + 1)  # of these numbers all from some place on make the draw too unlikely
    return right + bisect_left(poor, True, key=lambda count: bool(hypergeom.cdf(right, total, count, seen) < risk)) - 1


@dataclass(frozen=True)
class InterimResult:
    """What is known of a plan after a part of the images.

    Attributes:
        seen: share of the images.
        drop: points of accuracy that the plan loses on them.
        most_accuracy: the best accuracy over all images that what was seen leaves possible, percent.
    """

    seen: float
    drop: float
    most_accuracy: float


Hopeless = Callable[[InterimResult], bool]
"""Says of what is known of a plan whether it is of no use."""


class EarlyStopping:
    """Told the outputs of one batch after the other, says when a plan is hopeless.

    Attributes:
        looks: at the plan so far.
        stopped: the look at which it was hopeless, if it was.
    """

    def __init__(self, labels: Tensor, original: Tensor, hopeless: Hopeless) -> None:
        """Starts before the first batch.

        Args:
            labels: `(n,)` of all samples, which must be in random order.
            original: `(n, classes)` outputs of the original.
            hopeless: asked at each look.
        """
        self.looks: list[InterimResult] = []
        self.stopped: InterimResult | None = None
        self._labels = labels
        self._right_before = (original.argmax(1) == labels).cumsum(0)
        self._hopeless = hopeless
        self._due = [share * len(labels) for share in LOOKS]
        self._right = self._seen = 0

    def __call__(self, logits: Tensor) -> bool:
        """Returns whether the plan is hopeless, given its outputs `(m, classes)` on the next batch."""
        labels = self._labels[self._seen : self._seen + len(logits)]
        self._right += int((logits.argmax(1) == labels).sum())
        self._seen += len(logits)
        if self._due and self._due[0] <= self._seen < len(self._labels):
            self._due = [place for place in self._due if place > self._seen]
            self.looks.append(self._look())
            if self._hopeless(self.looks[-1]):
                self.stopped = self.looks[-1]
        return self.stopped is not None

    def _look(self) -> InterimResult:
        total = len(self._labels)
        lost = int(self._right_before[self._seen - 1]) - self._right
        most = most_right(self._right, self._seen, total, RISK / len(LOOKS))
        return InterimResult(self._seen / total, 100.0 * lost / self._seen, 100.0 * most / total)
