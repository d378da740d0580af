"""Figures of reports as text; what could not be measured is a dash."""

from collections.abc import Mapping
from typing import Any

UNKNOWN = "-"
MINUS = "\N{MINUS SIGN}"

Report = Mapping[str, Any]


def count(value: float | None) -> str:
    """Returns a whole number with commas."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def number(value: float | None, digits: int = 4) -> str:
    """Returns a number with so many digits."""
    return UNKNOWN if value is None else f"{value:.{digits}g}".replace("-", MINUS)


def percent(value: float | None) -> str:
    """Returns a share as a percentage."""
    return UNKNOWN if value is None else f"{100.0 * value:.3g} %".replace("-", MINUS)


def change(value: float | None, form: str = ".3g") -> str:
    """Returns a difference with its sign; one that rounds to nothing is a plain 0."""
    if value is None:
        return UNKNOWN
    text = f"{value:+{form}}"
    return "0" if not any(digit in "123456789" for digit in text.partition("e")[0]) else text.replace("-", MINUS)


def share(after: float | None, before: float | None) -> float | None:
    """Returns what is left of a cost; None where either is not known or it was nothing."""
    return None if after is None or not before else after / before


def metric_value(report: Report, value: float | None) -> str:
    """Returns a value of the report's metric with its unit."""
    unit = str(report["metric"]["unit"])
    return UNKNOWN if value is None else f"{format(value, '.2f' if unit == '%' else '.4g')} {unit}".strip()


def verdict(report: Report) -> str:
    """Returns whether the demand is met, and where it is not by how much it is missed."""
    if report["demand_met"]:
        return "met"
    if not report["violations"]:
        return "NOT met: a check of the files failed"
    return f"NOT met: beyond the ceiling of {', '.join(excess(*each) for each in report['violations'].items())}"


def attainable_in_words(report: Report) -> str:
    """Returns how small each cost with a ceiling gets within the accuracy ceiling; empty where nothing was searched."""
    most, found = report["demand"]["max_accuracy_drop"], report["attainable"]
    if not found:
        return ""
    told = []
    for name, each in found.items():
        exact = f"{each['scored']:.3f} by exact scores, " if "scored" in each else ""
        told.append(f"{name} {exact}about {each['share']:.3f} ({each['low']:.3f} to {each['high']:.3f}) by estimates")
    within = "" if most is None else f" within a drop of {most:g} points"
    return f"attainable{within}, one at a time, as shares of the original's: {'; '.join(told)}"


def excess(name: str, value: float | None) -> str:
    """Returns by how much a ceiling is broken."""
    if value is None:
        return f"{name}, which could not be measured"
    units = {"accuracy_drop": "points", "memory": "of the device's"}
    return f"{name} by {value:.3g} {units.get(name, 'of the original')}"
