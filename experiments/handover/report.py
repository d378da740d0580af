"""The report: where a result comes from, what the files are, and whether the demand is met."""

import math
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from plywise.compressors.modules.layers import weight_of
from plywise.compressors.recipes.plan import Plan
from plywise.env.costs.device import Device
from plywise.env.costs.latency import LatencyTable
from plywise.env.network.menu import legal_recipes
from plywise.env.prices.prices import METRICS
from plywise.env.recovery.recovery import Recovered
from plywise.env.score.demand import Demand
from plywise.env.score.score import Outcome, judge
from plywise.env.subject import Subject
from plywise.experiments.data.preprocessing import Preprocessing
from plywise.experiments.handover.alternatives import Alternatives, Scored
from plywise.experiments.handover.checks import Checks
from plywise.experiments.handover.files import told

VERSIONED = ("plywise", "torch", "onnxruntime", "numpy")
"""What figures depend on, for the report."""

OFF_TABLE = "not on the price list of this layer: applied as written, priced only as part of the whole network"

STORED = (
    "Latencies are read from the device's file or model: from an empty cache the same command ends with the same plan."
)
MEASURED = (
    "Latencies are measured, and vary from moment to moment: the same command may end with another plan, of about the "
    "same score, from an empty cache; while the cache is kept, and for a --device FILE, it ends with the same."
)


@dataclass(frozen=True)
class Origin:
    """Where things come from, for the report.

    Attributes:
        model, data: as the user gave them.
        seed: of every random choice.
        method: who found the plan.
        evaluations: plans that were scored exactly on the way.
        stopped: how many plans were stopped early, as none of use.
        started: `time.perf_counter()` at the start of the run.
        validation: what kind of samples plans were scored on.
        refused: layers that cannot take the recipe of the pattern that they match, with the reason.
        uniform: the best plan with one recipe for all layers that the search started from, if it did.
        uniform_evaluations: plans among `evaluations` that it started from.
        preprocessing: what was done to the images; None where a task did it.
        classes: names of the dataset's classes, in the order of the logits.
        warnings: what casts doubt on all figures.
        task: the user's function that made the task, as text; None where there is none.
        notes: what a user should know about network and data.
        scored: plans that the search scored, in that order, uniform ones first.
        attainable: how small each cost with a ceiling gets within the accuracy ceiling.
        architecture: what `plywise.load` finds the network by; None where the network itself was given.
        command: what makes the same again.
    """

    model: str
    data: str
    seed: int
    method: str
    evaluations: int
    started: float
    validation: str
    refused: Mapping[str, str] = field(default_factory=dict)
    stopped: int = 0
    uniform: Plan | None = None
    uniform_evaluations: int = 0
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    task: str | None = None
    notes: tuple[str, ...] = ()
    scored: tuple[Scored, ...] = ()
    attainable: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    architecture: str | None = None
    command: str | None = None


def _memory_violation(device: Device, block: Mapping[str, Any]) -> dict[str, float]:
    """Returns by how much a network is too large for a device, as a share of its memory, named; no search sees this."""
    if block.get("fits_memory", True) or device.memory_bytes is None:
        return {}
    return {"memory": block["memory_needed_bytes"] / device.memory_bytes - 1.0}


def make_report(
    subject: Subject,
    plan: Plan,
    demand: Demand,
    origin: Origin,
    blocks: Mapping[str, dict[str, Any]],
    checks: Checks,
    recovered: Recovered | None,
    by_layer: Mapping[str, Sequence[dict[str, Any]]],
) -> dict[str, Any]:
    """Returns the report, which JSON can hold.

    Args:
        subject: the network under study.
        plan: how it was compressed.
        demand: what was wanted.
        origin: where things come from.
        blocks: figures of the original, of uniform int8, of the best uniform plan where there is one, and of the
            compressed network, by these names.
        checks: of the files; the demand is not met where one failed.
        recovered: the compressed network after fine-tuning, if it was.
        by_layer: what each layer costs, `before` and `after`.
    """
    # What runs elsewhere is judged by its latency there; what the files take here is reported alongside it.
    latency = "latency_ms" if subject.latency.device.is_here else "device_latency_ms"
    outcome, violations = _judged(subject, demand, blocks, "compressed", latency)
    metric = subject.validation.judge
    shown = dict(blocks)
    others = Alternatives(subject, plan, demand, origin.scored, origin.uniform_evaluations)
    if origin.uniform is not None:
        uniform, broken = _judged(subject, demand, blocks, "uniform", latency)
        recipe = max(map(str, origin.uniform.values()), key=len)  # layers that cannot take all of it have a shorter one
        shown["uniform"] = {"recipe": recipe, "demand_met": not broken, "score": told(uniform.score)} | shown["uniform"]
    return {
        "model": origin.model,
        "data": origin.data,
        "preprocessing": None if origin.preprocessing is None else origin.preprocessing.report(),
        "classes": list(origin.classes),
        "warnings": list(origin.warnings),
        "task": origin.task,
        "notes": list(origin.notes),
        "architecture": origin.architecture,
        "command": origin.command,
        "device": asdict(subject.latency.device),
        "timing": _timing(subject),
        "metric": {"name": metric.name, "unit": metric.unit, "point": metric.point, "agreement": metric.faithful},
        "demand_latency": latency,
        "demand": asdict(demand),
        "demand_met": not violations and checks.passed,
        "violations": {name: told(excess) for name, excess in violations.items()},
        "attainable": {name: dict(each) for name, each in origin.attainable.items()},
        "checks": checks.report(),
        "score": told(outcome.score),
        "method": origin.method,
        "seed": origin.seed,
        "evaluations": origin.evaluations,
        "uniform_evaluations": origin.uniform_evaluations,
        "stopped_early": origin.stopped,
        "seconds": time.perf_counter() - origin.started,
        "validation": {
            "samples": len(subject.validation),
            "kind": origin.validation,
            "original_accuracy": subject.accuracy * metric.point,
            "compressed_accuracy": metric.point
            * (subject.measure(plan).accuracy if recovered is None else recovered.accuracy),
        },
        "repair": asdict(subject.bank.repair),
        "recovery": None if recovered is None else recovered.report(),
        "machine": {"system": platform.platform(), "processors": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: found.version for name in VERSIONED for found in metadata.distributions(name=name)},
        **shown,
        "search": {"scored": others.scored, "estimated_front": others.front()},
        "layers": _layers(subject, plan, origin.refused, others, by_layer),
    }


def _timing(subject: Subject) -> dict[str, Any]:
    """Returns by how much the latencies vary that plans were compared by, shares of them, and what that means."""
    latency = subject.latency
    if not isinstance(latency, LatencyTable):
        return {"in_words": STORED}
    varied = [latency.variations[chain] for chain in subject.network.operations.values() if chain in latency.variations]
    if not varied:
        return {"in_words": MEASURED}
    middle, most = statistics.median(varied), max(varied)
    shown = f"half of the layers' latencies vary by over {100 * middle:.1f} % while they are timed"
    shown += f", the most by {100 * most:.1f} %"
    return {"median_variation": middle, "largest_variation": most, "in_words": f"{MEASURED} Here {shown}."}


def _judged(
    subject: Subject, demand: Demand, blocks: Mapping[str, dict[str, Any]], name: str, latency: str
) -> tuple[Outcome, dict[str, float]]:
    """Returns the outcome of the block of a name on the files' figures, and the ceilings that it breaks."""
    before, after = (
        _known([block[each] for each in ("storage_bytes", latency, "energy_mj", "accuracy")])
        for block in (blocks["original"], blocks[name])
    )
    outcome = judge(demand, before[:3], after[:3], (before[3] - after[3]) / subject.validation.judge.point)
    return outcome, outcome.violations | _memory_violation(subject.latency.device, blocks[name])


def _known(figures: Sequence[float | None]) -> list[float]:
    """Returns figures as numbers, not a number where one could not be measured."""
    return [math.nan if figure is None else float(figure) for figure in figures]


def _share(after: float, before: float) -> float | None:
    """Returns None where the layer as it was takes nothing that could be measured."""
    return float(after / before) if before > 0 else None


def _layers(
    subject: Subject,
    plan: Plan,
    refused: Mapping[str, str],
    others: Alternatives,
    by_layer: Mapping[str, Sequence[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """The recipe of each layer with its prices against `identity`, then the layers left as they are and why."""
    table, rows = subject.price(), []
    state = subject.bank.state(plan)
    for index, layer in enumerate(subject.layers):
        recipe = str(plan[layer.name])
        legal = len(legal_recipes(layer, subject.network.modules[layer.name]))
        choices = {"legal": legal, "offered": int(table.legal[index].sum())}
        module = subject.network.modules[layer.name]
        row: dict[str, Any] = {
            "name": layer.name,
            "type": type(module).__name__,
            "weight": list(weight_of(module).shape),
            "runs": layer.runs,
            "recipe": recipe,
            "choices": choices,
            "costs": {when: costs[index] for when, costs in by_layer.items()},
            "runner_up": others.runner_up(index),
        }
        if recipe in table.recipes[index]:
            slot = table.recipes[index].index(recipe)
            before, after = table.cost[:, index, 0, 0, 0], table.cost[:, index, slot, 0, 0]
            row["price"] = {
                **{name: _share(*pair) for name, *pair in zip(METRICS, after, before, strict=True)},
                "estimated_accuracy_drop": float(table.drop[index, slot]),
            }
        elif recipe != "identity":
            row["unpriced"] = OFF_TABLE
        if any(group in layer.reads for group, _ in state):
            row["note"] = "reads fewer channels than in the original"
        if layer.name in refused:
            row["refused"] = refused[layer.name]
        if layer.uncut is not None:
            row["not_pruned"] = layer.uncut
        not_run = {recipe: reason for name, recipe, reason in table.refused if name == layer.name}
        if not_run:
            row["not_run"] = not_run
        rows.append(row)
    rows += [{"name": name, "recipe": "identity", "note": reason} for name, reason in subject.network.skipped.items()]
    return rows
