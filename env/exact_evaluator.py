"""Scores plans for real: stitched, run over the validation samples, every layer priced in its real shapes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from plywise.env.prices.prices import PriceTable
from plywise.env.score.demand import Demand
from plywise.env.score.early_stopping import InterimResult
from plywise.env.score.evaluator import PlanEstimator
from plywise.env.score.score import Outcome, judge, score_of
from plywise.env.subject import Subject

CHEAPER = 0.75
"""Share of its estimated costs that a plan may turn out to have: nine in ten lie within an eighth of them."""


class ExactEvaluator:
    """The evaluator whose scores count; see `plywise.env.score.evaluator.Evaluator`.

    A plan that can no longer beat the best one so far is not run to the end: its drop is then that on the images seen,
    or the least that these leave possible where that is more, and its costs are those of the price table. So its score
    is below the best one, and its outcome says that it was stopped.

    Attributes:
        subject: the network under study.
        demand: what is wanted.
        evaluations: calls of `evaluate` so far.
        stopped: how many of them were not run to the end.
    """

    def __init__(
        self, subject: Subject, demand: Demand, early: bool = True, watch: Callable[[int], None] | None = None
    ) -> None:
        """Starts without a best plan.

        Args:
            subject: the network under study.
            demand: what is wanted.
            early: whether plans may be stopped early.
            watch: told how many plans are scored, after each.
        """
        self.subject = subject
        self.demand = demand
        self.evaluations = self.stopped = 0
        self._early, self._watch = early, watch
        self._estimator = PlanEstimator(subject.price())
        self._best = -math.inf

    @property
    def table(self) -> PriceTable:
        """Prices of the network: estimates."""
        return self.subject.price()

    def evaluate(self, actions: Sequence[int]) -> Outcome:
        """Returns the outcome of a plan, one slot of the table per layer."""
        ratios = self._estimator.estimate(self._estimator.check(actions))[0][0]

        def hopeless(look: InterimResult) -> bool:
            most = score_of(self.demand, CHEAPER * ratios, self.subject.accuracy - look.most_accuracy)
            return self._early and most < self._best

        found = self.subject.race(self.subject.plan(actions), hopeless)
        self.evaluations += 1
        if self._watch is not None:
            self._watch(self.evaluations)
        if isinstance(found, InterimResult):
            self.stopped += 1
            least = self.subject.accuracy - found.most_accuracy
            return replace(self._estimator.outcome(self.demand, ratios, max(found.drop, least)), seen=found.seen)
        outcome = judge(self.demand, self.table.original, found.cost, self.subject.accuracy - found.accuracy)
        self._best = max(self._best, outcome.score)
        return outcome
