"""The reward of a finished plan: one formula, used by the walk, the evaluators and the report.

    U     = accuracy_weight + sum_m weight_m
    score = sum_m weight_m * ln(original_m / cost_m)  -  accuracy_weight * linear_then_log(max(0, drop))
            - U * sum over broken cost ceilings
              (BROKEN + linear_then_log(COST_RATE * ln(cost_m / (ceiling_m * original_m))))
            - U * (BROKEN + linear_then_log(DROP_RATE * (drop - max_drop)))   where the accuracy ceiling is broken
    linear_then_log(x) = x up to KNEE, then KNEE * (1 + ln(x / KNEE))

with m over storage, latency and energy, and drops in percentage points. A network that lost 40 points is as useless
as one that lost 30: beyond the knee losses count by their logarithm, which keeps the order of plans and spares the
value function returns in the hundreds. U gives the penalty the scale of the
preferences, so no choice of weights can buy it off. Where a plan that holds every ceiling exists, 1 % more than a cost
ceiling pays only if it saves more than 2 U / accuracy_weight points, and one point of drop beyond the ceiling only if
it makes every cost 20 times smaller. Where none exists, the score weighs one broken ceiling against the other.
`score_plans` is this formula; `expected_scores` is its mean over drops that are not known yet.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from plywise.env.arrays import Doubles
from plywise.env.prices.prices import METRICS
from plywise.env.score.demand import Demand

BROKEN = 1.0
COST_RATE = 100.0
DROP_RATE = 2.0
KNEE = 5.0
SLACK = 1e-6
"""A ceiling counts as held up to this relative excess (cost) or this many points (drop): rounding, not tolerance."""
LEAST_RATIO = 1e-9
DENSITY = 1.0 / math.sqrt(2.0 * math.pi)
FAR = 1e6
"""Points below a ceiling that stand for having none."""


@dataclass(frozen=True)
class Demands:
    """A batch of demands as arrays: one row each, infinity where there is no ceiling.

    Attributes:
        accuracy_weight: `(n,)`.
        weights: `(n, M)` of the costs.
        ceilings: `(n, M)` shares of the original's cost.
        max_drop: `(n,)` points.
    """

    accuracy_weight: NDArray[Any]
    weights: NDArray[Any]
    ceilings: NDArray[Any]
    max_drop: NDArray[Any]

    @classmethod
    def of(cls, demands: Sequence[Demand]) -> "Demands":
        """Stacks demands."""
        none = np.inf
        return cls(
            np.array([demand.weights[0] for demand in demands]),
            np.array([demand.weights[1:] for demand in demands]),
            np.array([[none if c is None else c for c in demand.ceilings] for demand in demands]),
            np.array([none if d.max_accuracy_drop is None else d.max_accuracy_drop for d in demands], dtype=float),
        )

    def per_plan(self) -> "Demands":
        """Returns the demands with an axis of length 1 after the batch axis, to broadcast over many plans a row.

        In single precision: for what is promised, not for what is scored.
        """
        arrays = (self.accuracy_weight, self.weights, self.ceilings, self.max_drop)
        return Demands(*(array[:, None].astype(np.float32) for array in arrays))


@dataclass(frozen=True)
class Outcome:
    """What a finished plan costs and loses.

    Attributes:
        drop: lost accuracy, percentage points; negative where accuracy rose.
        cost: storage bytes, latency ms, energy mJ.
        ratios: the same as shares of the original's.
        score: see the module.
        demand_met: whether every ceiling holds.
        violations: by how much a ceiling is broken: share of the original's cost, or points for `accuracy_drop`.
        seen: share of the images that the drop was counted on; where it is not 1, the plan was stopped early as one
            that cannot beat the best, and its costs are estimates.
    """

    drop: float
    cost: tuple[float, ...]
    ratios: tuple[float, ...]
    score: float
    demand_met: bool
    violations: dict[str, float]
    seen: float = 1.0


def score_plans(demands: Demands, ratios: NDArray[Any], drop: NDArray[Any]) -> Doubles:
    """Returns the scores of plans, `(n, ...)`.

    Args:
        demands: n demands, expanded to broadcast with `drop`.
        ratios: `(n, ..., M)` costs as shares of the original's.
        drop: `(n, ...)` points.
    """
    over = drop - demands.max_drop
    penalty = np.where(over > SLACK, BROKEN + linear_then_log(DROP_RATE * over), 0.0)
    return _scores(demands, ratios, np.maximum(drop, 0.0), penalty)


def expected_scores(demands: Demands, ratios: NDArray[Any], drop: NDArray[Any], spread: NDArray[Any]) -> NDArray[Any]:
    """Returns what plans score on average where their drops are normal, `(n, ...)`.

    A plan whose drop is expected just below its ceiling breaks it half of the time, so the best score on paper is not
    the best to expect. Losses beyond the knee are taken at their means.

    Args:
        demands, ratios: as in `score_plans`.
        drop, spread: `(n, ...)` points.
    """
    spread = np.maximum(spread, SLACK)
    over = np.maximum(drop - demands.max_drop, -FAR)
    chance, excess = _above(over, spread)
    return _scores(demands, ratios, _above(drop, spread)[1], BROKEN * chance + linear_then_log(DROP_RATE * excess))


def _above(value: NDArray[Any], spread: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns how likely normal values are above zero, and by how much they are on average, negative ones as zero."""
    z = value / spread
    chance: NDArray[Any] = ndtr(z)
    return chance, spread * (np.exp(-0.5 * z * z) * DENSITY) + value * chance


def _scores(demands: Demands, ratios: NDArray[Any], loss: NDArray[Any], penalty: NDArray[Any]) -> NDArray[Any]:
    log_ratio = np.log(np.maximum(ratios, LEAST_RATIO))
    unit, gain = demands.accuracy_weight, -demands.accuracy_weight * linear_then_log(loss)
    for metric in range(ratios.shape[-1]):  # three plain columns: sums over an axis this short are slow
        weight = demands.weights[..., metric]
        unit, gain = unit + weight, gain - weight * log_ratio[..., metric]
        log_excess = log_ratio[..., metric] - np.log(demands.ceilings[..., metric])
        penalty = penalty + np.where(log_excess > SLACK, BROKEN + linear_then_log(COST_RATE * log_excess), 0.0)
    scores: NDArray[Any] = gain - unit * penalty
    return scores


def linear_then_log(loss: NDArray[Any]) -> NDArray[Any]:
    """Returns losses as they count: as they are up to the knee, by their logarithm beyond it."""
    counted: NDArray[Any] = np.minimum(loss, KNEE) + KNEE * np.log(np.maximum(loss, KNEE) / KNEE)
    return counted


def worst_use(demands: Demands, ratios: NDArray[Any]) -> NDArray[Any]:
    """Returns the largest share of a ceiling that plans use, `(n, ...)`; 0 without ceilings. Arguments as above."""
    use: NDArray[Any] = ratios[..., 0] / demands.ceilings[..., 0]
    for metric in range(1, ratios.shape[-1]):
        use = np.maximum(use, ratios[..., metric] / demands.ceilings[..., metric])
    return use


def score_of(demand: Demand, ratios: ArrayLike, drop: float) -> float:
    """Returns the score of one plan.

    Args:
        demand: what the user wants.
        ratios: `(M,)` costs as shares of the original's.
        drop: lost accuracy, percentage points.
    """
    return float(score_plans(Demands.of([demand]), np.asarray(ratios, float)[None], np.array([drop], float))[0])


def judge(demand: Demand, original: ArrayLike, cost: ArrayLike, drop: float) -> Outcome:
    """Returns the outcome of a plan of known cost and drop, whether estimated or measured.

    A cost that is no number meets no demand and is the worst there is.

    Args:
        demand: what the user wants.
        original: `(M,)` cost of the original network: bytes, ms, mJ.
        cost: `(M,)` cost of the compressed one.
        drop: lost accuracy, percentage points.
    """
    costs = np.asarray(cost, float)
    ratios = costs / np.asarray(original, float)
    unknown = {name: math.inf for name, ratio in zip(METRICS, ratios, strict=True) if not math.isfinite(ratio)}
    if unknown:  # what the device does not run, for one
        return Outcome(drop, tuple(costs.tolist()), tuple(ratios.tolist()), -math.inf, False, unknown)
    violations = {
        name: float(ratio - ceiling)
        for name, ratio, ceiling in zip(METRICS, ratios, demand.ceilings, strict=True)
        if ceiling is not None and ratio > ceiling * (1.0 + SLACK)
    }
    if demand.max_accuracy_drop is not None and drop > demand.max_accuracy_drop + SLACK:
        violations["accuracy_drop"] = drop - demand.max_accuracy_drop
    score = score_of(demand, ratios, drop)
    return Outcome(drop, tuple(costs.tolist()), tuple(ratios.tolist()), score, not violations, violations)
