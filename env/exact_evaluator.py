"""Scores plans for real: stitched, run over the validation samples, every layer priced in its real shapes."""

from collections.abc import Sequence

from plywise.env.demand import Demand
from plywise.env.prices import PriceTable
from plywise.env.score import Outcome, judge
from plywise.env.subject import Subject


class ExactEvaluator:
    """The evaluator whose scores count; see `plywise.env.evaluator.Evaluator`.

    Attributes:
        subject: the network under study.
        demand: what is wanted.
        evaluations: calls of `evaluate` so far.
    """

    def __init__(self, subject: Subject, demand: Demand) -> None:
        self.subject = subject
        self.demand = demand
        self.evaluations = 0

    @property
    def table(self) -> PriceTable:
        """Prices of the network: estimates."""
        return self.subject.table

    def evaluate(self, actions: Sequence[int]) -> Outcome:
        """Returns the outcome of a plan, one slot of the table per layer."""
        self.evaluations += 1
        measured = self.subject.measure(self.subject.plan(actions))
        drop = self.subject.accuracy - measured.accuracy
        return judge(self.demand, self.table.original, measured.cost, drop)
