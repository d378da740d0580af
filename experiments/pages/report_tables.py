"""Takes a report apart into the rows of its page's tables."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from plywise.experiments.pages.wording import UNKNOWN, change, count, metric_value, number, percent, share

Report = Mapping[str, Any]

LEFT = "no recipe is worth what it loses: {recipe} would save {saved} of the bytes for an estimated {drop} points"


class Asked(NamedTuple):
    """One ceiling of the demand, or a cost without one.

    Attributes:
        name: of what is limited.
        ceiling: as text; a dash for none.
        reached: as text.
        held: whether the ceiling holds; None without one.
    """

    name: str
    ceiling: str
    reached: str
    held: bool | None


class Figure(NamedTuple):
    """A figure of all networks side by side.

    Attributes:
        name: with its unit.
        values: as text, in the order of `columns`.
        share: of the compressed network's over the original's, as text.
    """

    name: str
    values: tuple[str, ...]
    share: str


def asked(report: Report) -> list[Asked]:
    """Returns what was asked for, what the files reach, and whether that holds."""
    demand, before, after, broken = (report[name] for name in ("demand", "original", "compressed", "violations"))
    drop = None
    if before["accuracy"] is not None and after["accuracy"] is not None:
        drop = (before["accuracy"] - after["accuracy"]) / report["metric"]["point"]
    most = demand["max_accuracy_drop"]
    lost = UNKNOWN if drop is None else f"{change(drop, '.2f')} points"
    shown = UNKNOWN if most is None else f"at most {most:g} points"
    rows = [Asked(f"{report['metric']['name']} drop", shown, lost, _held("accuracy_drop", most, broken))]
    keys = {"storage": "storage_bytes", "latency": report["demand_latency"], "energy": "energy_mj"}
    for name, key in keys.items():
        most = demand[f"max_{name}"]
        shown = UNKNOWN if most is None else f"at most {percent(most)} of the original"
        rows.append(Asked(name, shown, percent(share(after[key], before[key])), _held(name, most, broken)))
    if "fits_memory" in after:
        there = f"{count(report['device']['memory_bytes'])} bytes"
        rows.append(Asked("memory", there, f"{count(after['memory_needed_bytes'])} bytes", after["fits_memory"]))
    return rows


def _held(name: str, ceiling: float | None, broken: Mapping[str, Any]) -> bool | None:
    return None if ceiling is None else name not in broken


def columns(report: Report) -> dict[str, str]:
    """Returns headings of the networks that the report compares, by the names of their blocks."""
    found = {"original": "original", "uniform_int8": f"uniform {report['uniform_int8'].get('format', 'int8')}"}
    if "uniform" in report:
        found["uniform"] = "best uniform plan"
    return found | {"compressed": "compressed"}


def figures(report: Report) -> list[Figure]:
    """Returns the figures of all networks side by side; those that no report of this device has are left out."""
    blocks = [report[name] for name in columns(report)]
    batch = report["original"].get("batch", 1)
    here = "ONNX Runtime, here" if batch == 1 else f"ONNX Runtime, here, batch of {batch}"
    source = report["original"]["energy_source"]
    rows = []
    for name, key, shown in (
        (f"{report['metric']['name']} of model.onnx", "accuracy", lambda value: metric_value(report, value)),
        (f"{report['metric']['name']} in torch", "torch_accuracy", lambda value: metric_value(report, value)),
        ("weights.safetensors, bytes", "storage_bytes", count),
        ("model.onnx, bytes", "onnx_bytes", count),
        ("model.onnx.xz, bytes", "onnx_xz_bytes", count),
        (f"latency, ms ({report['device']['latency_source']})", "device_latency_ms", number),
        (f"latency, ms ({here})", "latency_ms", number),
        ("latency, quartiles, ms", "latency_quartiles_ms", _span),
        (f"energy, mJ ({source})", "energy_mj", number),
        ("MACs", "macs", count),
        ("parameters", "parameters", count),
    ):
        if not any(key in block for block in blocks):
            continue
        values = tuple(shown(block.get(key)) for block in blocks)
        whole = key.endswith("accuracy") or key == "latency_quartiles_ms"
        part = "" if whole else percent(share(report["compressed"].get(key), report["original"].get(key)))
        rows.append(Figure(name, values, part))
    return rows


def _span(quartiles: list[float] | None) -> str:
    return UNKNOWN if quartiles is None else " to ".join(number(value, 3) for value in quartiles)


def layers(report: Report) -> list[Mapping[str, Any]]:
    """Returns the rows of layers that could be compressed: those that nothing was priced for are left out."""
    return [row for row in report["layers"] if "costs" in row]


def remainder(report: Report, key: str, when: str, block: str) -> float | None:
    """Returns what of a network's cost no layer accounts for; None where that is not known.

    Args:
        report: with costs by layer.
        key: of the cost by layer: `storage_bytes` or `latency_ms`.
        when: `before` or `after`.
        block: of the network: `original` or `compressed`.
    """
    whole = report[block].get(report["demand_latency"] if key == "latency_ms" else key)
    each = [row["costs"][when][key] for row in layers(report)]
    return None if whole is None or None in each else whole - sum(each)


def shape(row: Mapping[str, Any]) -> str:
    """Returns what a layer is: type, shape of its weight, how often it runs."""
    sizes = " \N{MULTIPLICATION SIGN} ".join(str(size) for size in row["weight"])
    runs = "" if row["runs"] == 1 else f", runs {row['runs']:g} times"
    return f"{row['type']} {sizes}{runs}"


def runner_up(report: Report, row: Mapping[str, Any]) -> Mapping[str, str] | None:
    """Returns a layer's next best recipe with the changes that it would make to the whole network, as text."""
    found = row["runner_up"]
    if found is None:
        return None
    original = report["original"]
    latency, energy = original.get(report["demand_latency"]), original["energy_mj"]
    return {
        "recipe": found["recipe"],
        "storage": change(found["storage"] * original["storage_bytes"], ",.0f"),
        "latency": change(latency and found["latency"] * latency),
        "energy": change(energy and found["energy"] * energy),
        "drop": change(found["accuracy_drop"], ".2g"),
        "score": change(found["score"], ".2g"),
    }


def left_alone(report: Report) -> list[tuple[str, str]]:
    """Returns layers that stay as they are, and what was not done to others, each with the reason."""
    found: list[tuple[str, str]] = []
    for row in report["layers"]:
        name, same = row["name"], row["recipe"] == "identity"
        if same and "costs" not in row:
            found.append((name, row["note"]))
        elif same and "refused" in row:
            found.append((name, row["refused"]))
        elif same:
            found.append((name, _why_same(row)))
        if "not_pruned" in row:
            found.append((name, f"its channels are not cut: {row['not_pruned']}"))
        for recipe, reason in row.get("not_run", {}).items():
            found.append((name, f"{recipe} is not offered: {reason}"))
    return found


def _why_same(row: Mapping[str, Any]) -> str:
    best = row["runner_up"]
    if best is None:
        return "nothing else is offered, or the plan was given"
    return LEFT.format(recipe=best["recipe"], saved=percent(-best["storage"]), drop=number(best["accuracy_drop"], 2))


def certainty(report: Report) -> str | None:
    """Returns in words how far estimates were off; None where no plan was scored in full."""
    rows = [row for row in report["search"]["scored"] if row["seen"] == 1.0 and "estimated" in row]
    rows = [row for row in rows if row["accuracy_drop"] is not None]
    if not rows:
        return None
    off = [abs(row["accuracy_drop"] - row["estimated"]["accuracy_drop"]) for row in rows]
    within = sum(each <= row["estimated"]["spread"] for each, row in zip(off, rows, strict=True))
    plans = "1 plan" if len(rows) == 1 else f"{len(rows)} plans"
    return (
        f"Of {plans} scored on all samples, {within} lost what was estimated to within one spread (two in three are "
        f"expected to); the mean difference is {number(sum(off) / len(off), 2)} points, the largest "
        f"{number(max(off), 2)}. Each estimate is the one from before its plan was scored."
    )


def facts(report: Report) -> list[tuple[str, str]]:
    """Returns where the figures come from."""
    machine, validation, device = report["machine"], report["validation"], report["device"]
    scored = f"{report['evaluations']}"
    if report["uniform_evaluations"]:
        scored += f", {report['uniform_evaluations']} of them uniform"
    if report["stopped_early"]:
        scored += f", {report['stopped_early']} stopped early"
    rows = [
        ("device", f"{device['name']}; latencies {device['latency_source']}; threads {device['threads']}"),
        ("energy counter", report["energy_counter"]),
        ("machine", f"{machine['system']}, {machine['processors']} processors, Python {machine['python']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items())),
        ("seed", f"{report['seed']}"),
        ("method", report["method"]),
        ("plans scored", scored),
        ("score", number(report["score"])),
        ("seconds", number(report["seconds"], 3)),
        ("validation", f"{validation['samples']} samples, {validation['kind']}"),
        (
            "on validation",
            f"original {metric_value(report, validation['original_accuracy'])}, compressed "
            f"{metric_value(report, validation['compressed_accuracy'])}",
        ),
    ]
    if report["recovery"] is not None:
        settings = ", ".join(f"{name} {value}" for name, value in report["recovery"].items() if _plain(value))
        rows.append(("fine-tuned", settings))
    return [*rows, *((name, checksum) for name, checksum in report["checksums"].items())]


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float)
