"""Reads `report.json` of a hand-over folder."""

import json
from pathlib import Path
from typing import Any

from plywise.compressors.errors import FileFormatError

FIGURES = ("accuracy", "torch_accuracy", "storage_bytes", "onnx_bytes", "latency_ms")


def read_report(folder: Path) -> dict[str, Any]:
    """Returns the report of a finished run; raises FileFormatError where there is none."""
    path = folder / "report.json"
    try:
        report = json.loads(path.read_bytes())
        numbers = [report["compressed"][name] for name in FIGURES]
        report["checksums"] = dict(report.get("checksums", {}))  # older reports have none
    except OSError as error:
        raise FileFormatError(
            f"{folder} holds no finished run ({path.name}: {error.strerror}); name a folder that 'compress' wrote"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileFormatError(f"{path} is damaged ({error}); compress again or restore it") from error
    if not all(isinstance(number, int | float | None) for number in numbers) or not isinstance(report.get("data"), str):
        raise FileFormatError(f"{path} is damaged: its figures are no numbers; compress again or restore it")
    found: dict[str, Any] = report
    return found
