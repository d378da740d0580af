"""The interface of everything that looks for a plan."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from plywise.compressors.errors import ConfigurationError
from plywise.env.score.evaluator import Evaluator
from plywise.env.score.score import Outcome


@dataclass(frozen=True)
class SearchResult:
    """The best plan that a search found.

    Attributes:
        actions: one slot for each layer.
        outcome: as the evaluator saw it.
        evaluations: how many plans were scored.
        history: best score so far after each of them.
    """

    actions: tuple[int, ...]
    outcome: Outcome
    evaluations: int
    history: tuple[float, ...]


class CountedSearch:
    """One search in progress: keeps to the budget and remembers the best plan; no plan is paid for twice."""

    def __init__(self, evaluator: Evaluator, budget: int) -> None:
        if budget < 1:
            raise ConfigurationError(f"budget={budget} must be at least 1 evaluation")
        self._evaluator = evaluator
        self._budget = budget
        self._seen: dict[tuple[int, ...], Outcome] = {}
        self._history: list[float] = []
        self._best: tuple[int, ...] = ()

    @property
    def spent(self) -> bool:
        """Whether the budget is used up."""
        return len(self._history) >= self._budget

    @property
    def evaluations(self) -> int:
        """How many plans were scored."""
        return len(self._history)

    def evaluate(self, actions: Sequence[int]) -> Outcome:
        """Scores a plan; only one that was not scored before counts."""
        plan = tuple(int(action) for action in actions)
        if plan in self._seen:
            return self._seen[plan]
        assert not self.spent, "the budget is used up"
        outcome = self._seen[plan] = self._evaluator.evaluate(plan)
        if not self._history or outcome.score > self._history[-1]:
            self._best = plan
        self._history.append(self._seen[self._best].score)
        return outcome

    def result(self) -> SearchResult:
        """Returns the best of what was scored."""
        return SearchResult(self._best, self._seen[self._best], len(self._history), tuple(self._history))


class SearchMethod(ABC):
    """Looks for the plan with the best score within a budget of evaluations.

    Attributes:
        name: in the registry and on the command line.
    """

    name: ClassVar[str]

    @abstractmethod
    def search(self, evaluator: Evaluator, budget: int, seed: int) -> SearchResult:
        """Returns the best plan found.

        Args:
            evaluator: scores plans; its table may be read freely.
            budget: how many plans may be scored, at least 1.
            seed: of everything random.
        """
