"""What the user wants: ceilings that must hold and preferences among plans that hold them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from plywise.compressors.errors import ConfigurationError, unknown_name
from plywise.compressors.plain_values import as_number

MOST_WEIGHT = 1e6
"""Beyond it the score's terms are of such different sizes that the smaller ones no longer count."""


@dataclass(frozen=True)
class Demand:
    """Ceilings and preferences, relative to the original network.

    Attributes:
        max_accuracy_drop: percentage points of accuracy that may be lost; None for no ceiling.
        max_storage, max_latency, max_energy: share of the original's cost, in (0, 1]; None for no ceiling.
        accuracy_weight: what one point of accuracy is worth; each weight at most `MOST_WEIGHT`.
        storage_weight, latency_weight, energy_weight: what a factor e (2.72x) less of the cost is worth.
    """

    max_accuracy_drop: float | None = 1.0
    max_storage: float | None = None
    max_latency: float | None = None
    max_energy: float | None = None
    accuracy_weight: float = 1.0
    storage_weight: float = 0.25
    latency_weight: float = 0.25
    energy_weight: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            optional, number = name.startswith("max_"), as_number(value)
            if number is None and not (optional and value is None):
                raise ConfigurationError(f"{name}={value!r} must be a number{' or None' if optional else ''}")
            object.__setattr__(self, name, number)
        for name in ("max_storage", "max_latency", "max_energy"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value <= 1.0:
                raise ConfigurationError(
                    f"{name}={value!r} must be a share of the original's cost, above 0 and at most 1 (0.15 means 15 %)"
                )
        drop = self.max_accuracy_drop
        if drop is not None and not 0.0 <= drop <= 100.0:
            raise ConfigurationError(f"max_accuracy_drop={drop!r} must be percentage points between 0 and 100")
        weights = self.weights
        if any(not 0.0 <= weight <= MOST_WEIGHT for weight in weights) or sum(weights) == 0.0:
            raise ConfigurationError(f"weights {weights} must lie between 0 and {MOST_WEIGHT:,.0f}, and not all be 0")

    @property
    def ceilings(self) -> tuple[float | None, float | None, float | None]:
        """Ceilings of storage, latency and energy, as shares of the original's."""
        return self.max_storage, self.max_latency, self.max_energy

    @property
    def weights(self) -> tuple[float, float, float, float]:
        """Weights of accuracy, storage, latency and energy."""
        return self.accuracy_weight, self.storage_weight, self.latency_weight, self.energy_weight


def make_demand(fields: Mapping[str, float | None]) -> Demand:
    """Builds a demand from named fields; raises ConfigurationError with the nearest names on an unknown one."""
    known = {field.name for field in dataclasses.fields(Demand)}
    for name in fields:
        if name not in known:
            raise unknown_name("field of a demand", name, known)
    return Demand(**fields)  # type: ignore[arg-type]
