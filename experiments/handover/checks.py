"""What is checked once a plan was found: each finding is kept for the report, none ends the run."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Check:
    """What must hold of the files, and whether it does.

    Attributes:
        name: what must hold.
        passed: whether it does.
        difference, allowed: what was measured and how large it may be, in `unit`; None where nothing could be measured.
        unit: of both.
        problem: what was found instead, where it does not hold.
        likely_cause: of that.
    """

    name: str
    passed: bool
    difference: float | None = None
    allowed: float | None = None
    unit: str | None = None
    problem: str | None = None
    likely_cause: str | None = None


class Checks:
    """Collects checks. Nothing that they find throws away what a search has found."""

    def __init__(self) -> None:
        self.found: list[Check] = []

    @property
    def passed(self) -> bool:
        """Whether all did."""
        return all(check.passed for check in self.found)

    def attempt(self, name: str, likely_cause: str, action: Callable[[], Result]) -> Result | None:
        """Returns what an action returns, None where it fails.

        Args:
            name: what holds where it does not fail.
            likely_cause: of a failure.
            action: what is done.

        Raises:
            OSError: where files cannot be written: the next run finishes what is missing.
        """
        try:
            result = action()
        except OSError:
            raise
        except Exception as error:  # the search took hours: whatever fails here is told, with all that was found
            problem = str(error) or type(error).__name__
            self.found.append(Check(name, False, problem=problem, likely_cause=likely_cause))
            return None
        self.found.append(Check(name, True))
        return result

    def compare(
        self, name: str, difference: float, allowed: float, unit: str, problem: str, likely_cause: Callable[[], str]
    ) -> None:
        """Adds a check that a difference is small enough; one that is no number is not.

        Args:
            name: what holds where it is.
            difference: what was measured.
            allowed: how large it may be.
            unit: of both.
            problem: what was found, for where it is too large.
            likely_cause: asked for the cause where it is too large.
        """
        if difference <= allowed:
            self.found.append(Check(name, True, difference, allowed, unit))
            return
        told = difference if math.isfinite(difference) else None
        try:
            cause = likely_cause()
        except Exception as error:  # as in `attempt`: looking for a cause must not throw away what was found
            cause = f"not found out, for looking for it failed: {error}"
        self.found.append(Check(name, False, told, allowed, unit, problem, cause))

    def report(self) -> list[dict[str, Any]]:
        """Returns all checks, in the order in which they were made."""
        return [asdict(check) for check in self.found]
