"""Stops running a plan over images as soon as those seen rule out that the plan is of any use.

After an eighth, a quarter and half of the images, as in successive halving (Jamieson and Talwalkar, Non-stochastic Best
Arm Identification and Hyperparameter Optimization, 2016). There, plans side by side lose against their better half;
here, plans come one after the other, and each loses against the best that is known. How many of all images a plan can
get right at most follows from those seen by the exact bound for draws without replacement (Clopper and Pearson, The Use
of Confidence or Fiducial Limits, 1934, with the hypergeometric distribution in place of the binomial one).
"""

import math
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
        drop: points that the plan loses on them.
        most_accuracy: the most points over all images that what was seen leaves possible.
    """

    seen: float
    drop: float
    most_accuracy: float


Hopeless = Callable[[InterimResult], bool]
"""Says of what is known of a plan whether it is of no use."""


class EarlyStopping:
    """Told the values of one batch after the other, says when a plan is hopeless.

    Attributes:
        looks: at the plan so far.
        stopped: the look at which it was hopeless, if it was.
    """

    def __init__(self, before: Tensor, hopeless: Hopeless, bounds: tuple[float, float] | None = None) -> None:
        """Starts before the first batch.

        Args:
            before: `(n,)` values of the original on all samples, points, which must be in random order.
            hopeless: asked at each look.
            bounds: least and most that a sample's value can be, where values are no counts of right answers.
        """
        self.looks: list[InterimResult] = []
        self.stopped: InterimResult | None = None
        self._before = before.double().cumsum(0)
        self._hopeless, self._bounds = hopeless, bounds
        self._due = [share * len(before) for share in LOOKS]
        self._sum, self._seen, self._total = 0.0, 0, len(before)

    def __call__(self, values: Tensor) -> bool:
        """Returns whether the plan is hopeless, given its values `(m,)` on the next batch."""
        if self._bounds is None and not _are_counts(values):
            self._due = []  # the original's were: what this plan can get at most is not known
        self._sum += float(values.double().sum())
        self._seen += len(values)
        if self._due and self._due[0] <= self._seen < self._total:
            self._due = [place for place in self._due if place > self._seen]
            self.looks.append(self._look())
            if self._hopeless(self.looks[-1]):
                self.stopped = self.looks[-1]
        return self.stopped is not None

    def _look(self) -> InterimResult:
        lost = (float(self._before[self._seen - 1]) - self._sum) / self._seen
        return InterimResult(self._seen / self._total, lost, self._most())

    def _most(self) -> float:
        risk = RISK / len(LOOKS)
        if self._bounds is None:
            return 100.0 * most_right(round(self._sum / 100.0), self._seen, self._total, risk) / self._total
        return most_mean(self._sum / self._seen, self._seen, self._total, self._bounds, risk)


def can_stop(before: Tensor | None, bounds: tuple[float, float] | None) -> bool:
    """Returns whether a bound holds for values like the original's: they count right answers, or have known bounds."""
    return before is not None and (bounds is not None or _are_counts(before))


def _are_counts(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 100)).all())


def most_mean(mean: float, seen: int, total: int, bounds: tuple[float, float], risk: float) -> float:
    """Returns what the mean of all values can be at most, where that of some is known.

    Source: Bardenet and Maillard, Concentration Inequalities for Sampling Without Replacement, 2015, theorem 2.4 (of
    Serfling, 1974).

    Args:
        mean: of the values seen.
        seen, total: how many were seen, drawn at random, and are there.
        bounds: of each value.
        risk: chance that it is more.
    """
    low, high = bounds
    left = min(1.0 - (seen - 1) / total, (1.0 - seen / total) * (1.0 + 1.0 / seen))
    estimate = mean + (high - low) * math.sqrt(left * math.log(1.0 / risk) / (2.0 * seen))
    return min(estimate, (mean * seen + high * (total - seen)) / total)
