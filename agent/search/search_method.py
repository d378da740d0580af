"""The interface of everything that looks for a plan."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from plywise.agent.search.uniform_plans import uniform_plans
from plywise.compressors.errors import ConfigurationError
from plywise.env.prices.price_stack import LATENCY, NUM_METRICS
from plywise.env.prices.prices import PriceTable
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import Evaluator
from plywise.env.score.score import Demands, Outcome, expected_scores, score_plans
from plywise.env.score.surrogate import Surrogate

UNIFORM_SCORES = 8
"""Uniform plans that a search scores exactly before it begins, at most."""

OPTIMISM, CHEAPER = 2.0, 0.875
"""Spreads below its estimate at which a uniform plan's drop is looked at, and share of its estimated latency (nine in
ten lie within an eighth of it): where even that cannot beat the best one so far, it is not scored."""


@dataclass(frozen=True)
class SearchResult:
    """The best plan that a search found.

    Attributes:
        actions: one slot for each layer.
        outcome: as the evaluator saw it.
        evaluations: how many plans were scored, the uniform ones that the search started from not counted.
        history: best score so far after each of them.
        uniform: the best of the uniform plans that the search started from; empty where it started from none.
        scored: every plan that was scored, in that order, uniform ones that the search started from first.
    """

    actions: tuple[int, ...]
    outcome: Outcome
    evaluations: int
    history: tuple[float, ...]
    uniform: tuple[int, ...] = ()
    scored: tuple[tuple[tuple[int, ...], Outcome], ...] = ()


class CountedSearch:
    """One search in progress: keeps to the budget and remembers the best plan; no plan is paid for twice.

    Attributes:
        surrogate: has learned from all plans that were scored.
    """

    def __init__(self, evaluator: Evaluator, budget: int) -> None:
        if budget < 1:
            raise ConfigurationError(f"budget={budget} must be at least 1 evaluation")
        self.surrogate = Surrogate(evaluator.table)
        self._evaluator = evaluator
        self._budget = budget
        self._seen: dict[tuple[int, ...], Outcome] = {}
        self._history: list[float] = []
        self._best: tuple[int, ...] = ()
        self._uniform: tuple[int, ...] = ()

    @property
    def table(self) -> PriceTable:
        """Prices of the network; estimates, free of charge."""
        return self._evaluator.table

    @property
    def demand(self) -> Demand:
        """What is wanted."""
        return self._evaluator.demand

    @property
    def spent(self) -> bool:
        """Whether the budget is used up."""
        return len(self._history) >= self._budget

    @property
    def evaluations(self) -> int:
        """How many plans of the budget were scored."""
        return len(self._history)

    @property
    def ranked(self) -> list[tuple[int, ...]]:
        """All plans that were scored, the best first."""
        return sorted(self._seen, key=lambda plan: -self._seen[plan].score)

    def seen(self, actions: Sequence[int]) -> bool:
        """Returns whether a plan was scored already."""
        return _plan(actions) in self._seen

    def evaluate(self, actions: Sequence[int]) -> Outcome:
        """Scores a plan; only one that was not scored before counts."""
        plan = _plan(actions)
        if plan in self._seen:
            return self._seen[plan]
        assert not self.spent, "the budget is used up"
        outcome = self._score(plan)
        self._history.append(self._seen[self._best].score)
        return outcome

    def start_uniform(self) -> None:
        """Scores the most promising uniform plans, at no cost to the budget: nothing worse is ever the result."""
        plans, demands = uniform_plans(self.table, formats_only=True), Demands.of([self.demand])
        estimated = ratios = self.surrogate.estimate(plans)[0]
        left, timed = np.ones(len(plans), bool), np.zeros(len(plans), bool)
        for _ in range(min(UNIFORM_SCORES, len(plans))):
            _, drop, spread = self.surrogate.estimate(plans)
            expected = expected_scores(demands, ratios, drop, spread)
            if self._best:
                cheap = ratios.copy()
                cheap[~timed, LATENCY] *= CHEAPER
                most = score_plans(demands, cheap, np.maximum(drop - OPTIMISM * spread, 0.0))
                left &= most > self._seen[self._best].score
            if not left.any():
                break
            place = int(np.where(left, expected, -np.inf).argmax())
            left[place], outcome = False, self._score(_plan(plans[place]))
            if outcome.seen == 1.0:
                # Plans of number formats that are decoded at load have one graph, hence one latency.
                same = np.isclose(estimated[:, LATENCY], estimated[place, LATENCY], rtol=1e-6)
                ratios = np.where(same[:, None] & (np.arange(NUM_METRICS) == LATENCY), outcome.ratios, ratios)
                timed |= same
        self._uniform = self._best

    def result(self) -> SearchResult:
        """Returns the best of what was scored."""
        outcome = self._seen[self._best]
        scored = tuple(self._seen.items())
        return SearchResult(self._best, outcome, len(self._history), tuple(self._history), self._uniform, scored)

    def _score(self, plan: tuple[int, ...]) -> Outcome:
        outcome = self._seen[plan] = self._evaluator.evaluate(plan)
        self.surrogate.observe(plan, outcome.drop, outcome.seen)
        if not self._best or outcome.score > self._seen[self._best].score:
            self._best = plan
        return outcome


def _plan(actions: Iterable[int]) -> tuple[int, ...]:
    return tuple(int(action) for action in actions)


class SearchMethod(ABC):
    """Looks for the plan with the best score within a budget of evaluations.

    Attributes:
        name: in the registry and on the command line.
    """

    name: ClassVar[str]

    def search(self, evaluator: Evaluator, budget: int, seed: int, from_uniform: bool = False) -> SearchResult:
        """Returns the best plan found.

        Args:
            evaluator: scores plans; its table may be read freely.
            budget: how many plans may be scored, at least 1.
            seed: of everything random.
            from_uniform: start from uniform plans, up to `UNIFORM_SCORES` of which are scored besides the budget, so
                that the result is not worse than one recipe for all layers. Off for comparisons of methods.
        """
        counted = CountedSearch(evaluator, budget)
        if from_uniform:
            counted.start_uniform()
        self.look(counted, seed)
        return counted.result()

    @abstractmethod
    def look(self, counted: CountedSearch, seed: int) -> None:
        """Scores plans until the budget is spent or nothing is left to try; arguments as in `search`."""
