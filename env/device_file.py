"""Latencies that were measured on another machine and brought here as a file."""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import FileFormatError
from plywise.env import target_program
from plywise.env.device import MEASURED_ELSEWHERE, Device
from plywise.env.latency import UNKNOWN, Chain, chain_key, net_milliseconds
from plywise.env.operation_graph import operation_graph
from plywise.env.runtime import ONE_THREAD
from plywise.env.target_program import ANSWERS, Execution

MOST_BYTES = 64 * 2**20
"""A device file of a hundred networks is smaller."""

MOST_MS = 1e7


class DeviceFile:
    """Milliseconds of chains of operations as a device file has them; stands in for a `LatencyTable`.

    A chain that was not asked for is estimated from the measured one that is most like it, by their bytes and macs.

    Attributes:
        device: the machine that they were measured on.
    """

    def __init__(self, path: Path) -> None:
        """Reads a file that `target_program` wrote; executes nothing of it.

        Raises:
            FileFormatError: if there is no file, or none of ours, or it is damaged.
        """
        content = _read(path)
        try:
            name, mark, threads = content["name"], content["fingerprint"], content["threads"]
            self._measured = {_text(answer["chain"]): _median(answer) for answer in content["chains"]}
            self.device = Device(
                name=_text(name),
                # Whoever measures again on the same machine must not meet prices of the first time.
                fingerprint=f"{_text(mark)}-{hashlib.sha256(repr(self._measured).encode()).hexdigest()[:16]}",
                latency_source=MEASURED_ELSEWHERE,
                threads=int(threads),
            )
            self._reasons = {
                answer["chain"]: str(answer["reason"]) for answer in content["chains"] if "reason" in answer
            }
            self._empty = self._measured[chain_key(())]
            self._works = {key: _work(json.loads(key)) for key, found in self._measured.items() if found is not None}
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise FileFormatError(f"{path} is damaged ({type(error).__name__}: {error}); measure again") from error
        if self._empty is None or len(self._works) < 2:
            raise FileFormatError(f"{path} holds no latencies; measure again")

    def milliseconds(self, chains: Sequence[Chain], progress: bool = True) -> NDArray[np.float64]:
        """Returns the latency of each chain, `(n,)` milliseconds; nan where the target's runtime refuses it."""
        return np.array([self._milliseconds(chain) for chain in chains], float)

    def why_refused(self, chain: Chain) -> str:
        """Returns the reason of the target's runtime."""
        return self._reasons.get(chain_key(chain), UNKNOWN)

    def source_of(self, chains: Sequence[Chain]) -> str:
        """Returns in words how the latencies of chains are known."""
        guessed = sum(chain_key(chain) not in self._measured for chain in chains)
        rest = f", {guessed} of {len(chains)} layers estimated from others like them" if guessed else ""
        return f"{MEASURED_ELSEWHERE}: on {self.device.name}{rest}"

    def _milliseconds(self, chain: Chain) -> float:
        key = chain_key(chain)
        if key in self._measured:
            return net_milliseconds(chain, self._measured[key], self._empty or 0.0)
        kinds, work = _work(json.loads(key))
        distance = {
            other: (self._works[other][0] != kinds, abs(math.log(work / self._works[other][1])))
            for other in self._works
            if self._works[other][1] > 0
        }
        nearest = min(distance, key=lambda other: distance[other])
        cost = net_milliseconds(chain, self._measured[nearest], self._empty or 0.0)
        return cost * work / self._works[nearest][1]


def write_questions(chains: Sequence[Chain], path: Path, execution: Execution = ONE_THREAD) -> None:
    """Writes an archive that times chains of operations wherever it is run: `python3 questions.zip device.json`.

    Args:
        chains: what to time; running nothing is timed too.
        path: the archive.
        execution: how they are run there.
    """
    asked = [()] + [chain for chain in dict.fromkeys(chains) if chain]
    questions: list[dict[str, Any]] = []
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", Path(target_program.__file__).read_bytes())
        for place, chain in enumerate(asked):
            shape = [1, *(chain[0].input_shape if chain else (1,))]
            questions.append({"chain": chain_key(chain), "model": f"{place}.onnx", "shape": shape})
            archive.writestr(f"{place}.onnx", operation_graph(chain))
        archive.writestr("questions.json", json.dumps({"execution": execution, "chains": questions}))
    write_atomically(path, buffer.getvalue())


def _read(path: Path) -> dict[str, Any]:
    hint = "give a file that 'python3 questions.zip device.json' wrote on the target"
    try:
        if path.stat().st_size > MOST_BYTES:
            raise FileFormatError(f"{path} is larger than {MOST_BYTES >> 20} MB and no device file; {hint}")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read ({error.strerror}); {hint}") from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is damaged or no device file ({error}); {hint}") from error
    if not isinstance(content, dict) or content.get("format") != ANSWERS:
        raise FileFormatError(f"{path} is no device file of this version ({ANSWERS}); {hint}")
    return content


def _median(answer: dict[str, Any]) -> float | None:
    """Returns the milliseconds of an answer, None where the runtime refused."""
    if "median_ms" not in answer:
        _text(answer["reason"])
        return None
    median = answer["median_ms"]
    if not isinstance(median, float | int) or not 0.0 < median < MOST_MS:
        raise ValueError(f"median_ms={median!r} must be milliseconds between 0 and {MOST_MS:g}")
    return float(median)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _work(operations: list[dict[str, Any]]) -> tuple[list[tuple[str, bool]], float]:
    """Returns what kinds of operations a chain has, and the numbers that it reads and its multiply-adds, together."""
    kinds, work = [], 0.0
    for operation in operations:
        kinds.append((_text(operation["kind"]), bool(operation["integer"])))
        weights = operation["in_channels"] * operation["out_channels"] * math.prod(operation["kernel"])
        inputs = math.prod(operation["input_shape"])
        positions = inputs / operation["in_channels"] / math.prod(operation["stride"])
        work += inputs + weights / operation["groups"] * (1 + positions)
    return kinds, work
