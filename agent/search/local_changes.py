"""Small changes of the best plans so far, of which those are scored that promise the largest improvement.

Source: sequential model-based optimisation with local search on the expected improvement (Hutter, Hoos and
Leyton-Brown, Sequential Model-Based Optimization for General Algorithm Configuration, 2011, section 4.3; the expected
improvement is that of Jones, Schonlau and Welch, Efficient Global Optimization of Expensive Black-Box Functions, 1998).
Departure: the model is the price table's surrogate, whose drops are normal, so the improvement of the score, with its
ceilings, is a mean over quantiles.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import ndtri

from plywise.agent.search.search_method import CountedSearch
from plywise.env.arrays import Doubles, Ints
from plywise.env.prices.prices import PriceTable
from plywise.env.score.score import Demands, score_plans

PARENTS = 8
"""Plans that are changed: the best scored ones to begin with, then the most promising."""

CHANGED, NEIGHBOURS, ROUNDS = 4, 1024, 3
"""Layers that a change concerns at most, changes in a round, and rounds before each exact score."""

RENEWED = 8
"""Scores after which plans are proposed anew, on what was learned."""

QUANTILES: Doubles = ndtri((np.arange(16) + 0.5) / 16)
"""Of a normal drop, at which improvements are averaged."""

TIE = 1e-6
"""Weight of the mean score beside the improvement: it decides where no plan promises any."""

Proposals = Callable[[], Ints]
"""Gives plans `(P, L)` from elsewhere: of a policy, of an integer program."""


def improve(counted: CountedSearch, propose: Proposals, generator: np.random.Generator) -> None:
    """Scores plans until the budget is spent or nothing new is left; at least one must have been scored.

    Args:
        counted: the search in progress.
        propose: asked at the beginning and after every `RENEWED` scores.
        generator: where changes come from.
    """
    proposed, due = np.zeros((0, counted.table.num_layers), np.int64), 0
    while not counted.spent:
        if counted.evaluations >= due:
            proposed, due = propose(), counted.evaluations + RENEWED
        ranked = np.array(counted.ranked, np.int64)
        demands, best = Demands.of([counted.demand]), counted.result().outcome.score
        pool = np.concatenate([ranked[:PARENTS], proposed])
        for _ in range(ROUNDS):
            changed = neighbours(counted.table, pool[:PARENTS], NEIGHBOURS, generator)
            pool = np.unique(np.concatenate([pool, changed]), axis=0)
            promise = expected_improvements(demands, *counted.surrogate.estimate(pool), best)
            pool = pool[np.argsort(-promise, kind="stable")][:NEIGHBOURS]
        plan = next((plan for plan in pool.tolist() if not counted.seen(plan)), None)
        if plan is None:
            return
        counted.evaluate(plan)


def expected_improvements(demands: Demands, ratios: Doubles, drop: Doubles, spread: Doubles, best: float) -> Doubles:
    """Returns by how much plans are expected to score above the best one so far, `(n,)`.

    Args:
        demands: one demand.
        ratios: `(n, M)` costs as shares of the original's.
        drop, spread: `(n,)` mean and standard deviation, points.
        best: score so far.
    """
    drops = drop[:, None] + spread[:, None] * QUANTILES
    scores = score_plans(demands, np.repeat(ratios[:, None], len(QUANTILES), 1), drops)
    gains: Doubles = np.maximum(scores - best, 0.0).mean(1) + TIE * scores.mean(1)
    return gains


def neighbours(table: PriceTable, plans: Ints, count: int, generator: np.random.Generator) -> Ints:
    """Returns plans `(count, L)` that differ from one of `plans` `(Q, L)` in one to `CHANGED` layers, drawn evenly."""
    parents = plans[generator.integers(len(plans), size=count)]
    places = generator.random(parents.shape).argsort(1)
    changed = places < generator.integers(1, CHANGED + 1, size=count)[:, None]
    slots, choices = np.argsort(~table.legal, axis=1, kind="stable"), table.legal.sum(1)
    drawn = slots[np.arange(table.num_layers), (generator.random(parents.shape) * choices).astype(np.int64)]
    found: Ints = np.where(changed, drawn, parents)
    return found
