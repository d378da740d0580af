"""How pixels become what a network sees: what its weights were trained on, which no file of weights says."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plywise.compressors.errors import ConfigurationError, FileFormatError

GIVEN = "given"
USUAL = "usual for the dataset"
MEASURED = "measured on the training split"

Given = float | str | Sequence[float] | None
"""A mean or a standard deviation as users give it: a number, one for each channel, or a text of them with commas."""


@dataclass(frozen=True)
class Normalisation:
    """What is taken from each channel, after scaling to [0, 1], and what it is divided by then.

    Attributes:
        mean, std: one number, or one for each channel.
        source: who chose them: `GIVEN`, `USUAL` or `MEASURED`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = GIVEN

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not values or not all(math.isfinite(value) for value in values):
                raise ConfigurationError(f"{name}={_text(values)} must be finite numbers, one or one for each channel")
        if min(self.std) <= 0.0:
            raise ConfigurationError(f"std={_text(self.std)} must be above 0: inputs are divided by it")
        if max(map(abs, self.mean)) > 2.0 or max(self.std) > 2.0:
            raise ConfigurationError(
                f"mean={_text(self.mean)} and std={_text(self.std)} must be those of pixels in [0, 1]: divide what is "
                "meant for pixels from 0 to 255 by 255"
            )

    def for_channels(self, count: int) -> "Normalisation":
        """Returns it with one number for each channel; raises ConfigurationError where there are others already."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, count):
                raise ConfigurationError(
                    f"{name}={_text(values)} has {len(values)} numbers, the images have {count} "
                    f"channel{'s' * (count != 1)}: give one number, or one for each channel"
                )
        mean, std = (values * count if len(values) == 1 else values for values in (self.mean, self.std))
        return Normalisation(mean, std, self.source)

    def report(self) -> dict[str, Any]:
        """Returns what the report of a run says about it."""
        return {"mean": list(self.mean), "std": list(self.std), "source": self.source}

    def __str__(self) -> str:
        return f"mean {_text(self.mean)}, std {_text(self.std)} ({self.source})"


def make_normalisation(mean: Given, std: Given) -> Normalisation | None:
    """Returns the normalisation that a user has given, None where nothing was.

    Raises:
        ConfigurationError: only one of both is given, or what is given are no allowed numbers.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        given, missing = ("std", "mean") if mean is None else ("mean", "std")
        raise ConfigurationError(f"{given} is given without {missing}: give both, they belong together")
    return Normalisation(_numbers("mean", mean), _numbers("std", std))


def reported_normalisation(report: Any) -> Normalisation | None:
    """Returns the normalisation that a report names, None where it names none; raises FileFormatError on nonsense."""
    if report is None:
        return None
    try:
        mean, std = (tuple(float(value) for value in report[name]) for name in ("mean", "std"))
        return Normalisation(mean, std, str(report["source"]))
    except (TypeError, ValueError, KeyError, ConfigurationError) as error:
        raise FileFormatError(f"the report's normalisation is damaged ({error}); give --mean and --std") from error


def _numbers(name: str, given: float | str | Sequence[float]) -> tuple[float, ...]:
    try:
        if isinstance(given, str):
            return tuple(float(part) for part in given.strip("[]() ").split(","))
        return tuple(float(value) for value in given) if isinstance(given, Sequence) else (float(given),)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{name}={given!r} must be a number, or one for each channel such as 0.49,0.48,0.45"
        ) from error


def _text(values: Sequence[float]) -> str:
    return ",".join(f"{value:.4g}" for value in values)
