"""Stops running a plan over images as soon as those seen rule out that the plan is of any use.

After an eighth, a quarter and half of the images, as in successive halving (Jamieson and Talwalkar, Non-stochastic Best
Arm Identification and Hyperparameter Optimization, 2016). There, plans side by side lose against their better half;
here, plans come one after the other, and each loses against the best that is known. How many of all images a plan can
get right at most follows from those seen by the exact bound for draws without replacement (Clopper and Pearson, The Use
of Confidence or Fiducial Limits, 1934, with the hypergeometric distribution in place of the binomial one).
"""

from bisect import bisect_left
from collections.abc import Callable

from scipy.stats import hypergeom
from torch import Tensor

LOOKS = (1 / 8, 1 / 4, 1 / 2)
"""Shares of the images after which a plan is looked at."""

RISK = 1e-3
"""Chance that a plan is stopped for an accuracy that it would have reached, over all looks at it."""


def most_right(right: int, seen: int, total: int, risk: float) -> int:
    """Returns how many answers among `total` can be right, where `right` of the `seen` ones are.

    Args:
        right: right answers among those seen.
        seen: answers seen, drawn at random from all.
        total: all answers.
        risk: chance of a draw as poor as this one, where more are right than returned.
    """
    poor = range(right, right + total - seen + 1)  # of these numbers all from some place on make the draw too unlikely
    return right + bisect_left(poor, True, key=lambda count: bool(hypergeom.cdf(right, total, count, seen) < risk)) - 1


class EarlyStopping:
    """Told the outputs of one batch after the other, says when a plan is hopeless.

    Attributes:
        stopped: whether it has said so.
    """

    def __init__(self, labels: Tensor, hopeless: Callable[[float], bool]) -> None:
        """Starts before the first batch.

        Args:
            labels: `(n,)` of all samples, which must be in random order.
            hopeless: given the best accuracy that a plan can still have, percent, whether it is of no use.
        """
        self.stopped = False
        self._labels = labels
        self._hopeless = hopeless
        self._looks = [share * len(labels) for share in LOOKS]
        self._right = self._seen = 0

    def __call__(self, logits: Tensor) -> bool:
        """Returns whether the plan is hopeless, given the outputs `(m, classes)` of the next batch."""
        labels = self._labels[self._seen : self._seen + len(logits)]
        self._right += int((logits.argmax(1) == labels).sum())
        self._seen += len(logits)
        due = bool(self._looks) and self._looks[0] <= self._seen < len(self._labels)
        if due:
            self._looks = [look for look in self._looks if look > self._seen]
            self.stopped = self._hopeless(self.most_accuracy)
        return self.stopped

    @property
    def most_accuracy(self) -> float:
        """The best accuracy over all samples that what was seen leaves possible, percent."""
        total = len(self._labels)
        return 100.0 * most_right(self._right, self._seen, total, RISK / len(LOOKS)) / total
