"""Latencies that were measured on another machine and brought here as a file."""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import FileFormatError
from plywise.env.costs.device import MEASURED_ELSEWHERE, Device
from plywise.env.costs.latency import Chain, chain_key, net_milliseconds
from plywise.env.runtime import target_program
from plywise.env.runtime.integer_kernels import weight_bits
from plywise.env.runtime.operation_graph import operation_graph
from plywise.env.runtime.runtime import ONE_THREAD
from plywise.env.runtime.target_program import ANSWERS, CPU, CUDA, Execution

MOST_BYTES = 64 * 2**20
"""A device file of a hundred networks is smaller."""

MOST_MS = 1e7
MOST_COUNT = 2**31 - 1
MOST_AXES = 8
MOST_WORK = 1e30
"""Of a count, of the axes of a shape and of a chain's work: what is beyond is damage."""


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
        with _naming(path):
            self.device = _device(content)
            answers = _list("chains", content["chains"])
        self._measured: dict[str, float | None] = {}
        self._reasons: dict[str, str] = {}
        self._works: dict[str, tuple[list[tuple[str, bool]], float]] = {}
        for place, answer in enumerate(answers):
            with _naming(path, f"chains[{place}]: "):
                key = _text("chain", answer["chain"])
                self._measured[key], (kinds, work) = _median(answer), _work(key, self.device.batch)
                if "reason" in answer:
                    self._reasons[key] = str(answer["reason"])
                if self._measured[key] is not None and work > 0.0:
                    self._works[key] = kinds, work
        self._empty = self._measured.get(chain_key(()))
        if self._empty is None or not self._works:
            raise FileFormatError(f"{path} holds no latencies; measure again")

    def milliseconds(self, chains: Sequence[Chain], progress: bool = True) -> NDArray[np.float64]:
        """Returns the latency of each chain, `(n,)` milliseconds; nan where the target's runtime refuses it."""
        return np.array([self._milliseconds(chain) for chain in chains], float)

    def why_refused(self, chain: Chain) -> str:
        """Returns the reason of the target's runtime."""
        return self._reasons[chain_key(chain)]

    def source_of(self, chains: Sequence[Chain]) -> str:
        """Returns in words how the latencies of chains are known."""
        guessed = [key for key in map(chain_key, chains) if key not in self._measured]
        rest = f", {len(guessed)} of {len(chains)} layers estimated from others" if guessed else ""
        kinds = [kinds for kinds, _ in self._works.values()]
        strange = sum(_work(key, self.device.batch)[0] not in kinds for key in guessed)
        rest += f", {strange} of which are of a kind that was not measured at all" if strange else ""
        return f"{MEASURED_ELSEWHERE}: on {self.device.name}, {self.device.running}{rest}"

    def _milliseconds(self, chain: Chain) -> float:
        key = chain_key(chain)
        if key in self._measured:
            return net_milliseconds(chain, self._measured[key], self._empty or 0.0)
        kinds, work = _work(key, self.device.batch)
        distance = {other: (there[0] != kinds, abs(math.log(work / there[1]))) for other, there in self._works.items()}
        nearest = min(distance, key=lambda other: distance[other])
        cost = net_milliseconds(chain, self._measured[nearest], self._empty or 0.0)
        return cost * work / self._works[nearest][1]


def write_questions(chains: Sequence[Chain], path: Path, execution: Execution = ONE_THREAD, batch: int = 1) -> None:
    """Writes an archive that times chains of operations wherever it is run: `python3 questions.zip device.json`.

    Args:
        chains: what to time; running nothing is timed too.
        path: the archive.
        execution: how they are run there.
        batch: inputs of one run.
    """
    asked = [()] + [chain for chain in dict.fromkeys(chains) if chain]
    questions: list[dict[str, Any]] = []
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", Path(target_program.__file__).read_bytes())
        for place, chain in enumerate(asked):
            shape = [batch, *(chain[0].input_shape if chain else (1,))]
            questions.append({"chain": chain_key(chain), "model": f"{place}.onnx", "shape": shape})
            archive.writestr(f"{place}.onnx", operation_graph(chain))
        archive.writestr("questions.json", json.dumps({"execution": execution, "batch": batch, "chains": questions}))
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


@contextmanager
def _naming(path: Path, entry: str = "") -> Iterator[None]:
    """Turns what is wrong with an entry of a file into an error that names it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        anew = "make it anew with 'python3 questions.zip device.json' on the target"
        raise FileFormatError(f"{path} is damaged: {entry}{why}; {anew}") from error


def _device(content: dict[str, Any]) -> Device:
    """Returns the machine; files that were written before batches were asked for are of one image on the processor."""
    mark, provider = _text("fingerprint", content["fingerprint"]), content.get("provider", CPU)
    if provider not in (CPU, CUDA):
        raise ValueError(f"provider={provider!r} must be {CPU} or {CUDA}")
    bits, reason = weight_bits(_text("instructions", content.get("instructions") or "unknown"))
    return Device(
        name=_text("name", content["name"]),
        # Whoever measures again on the same machine must not meet prices of the first time.
        fingerprint=f"{mark}-{hashlib.sha256(repr(content).encode()).hexdigest()[:16]}",
        latency_source=MEASURED_ELSEWHERE,
        threads=_count("threads", content["threads"]),
        batch=_count("batch", content.get("batch", 1)),
        provider=provider,
        integer_weight_bits=bits,
        integer_weight_reason=reason,
    )


def _median(answer: dict[str, Any]) -> float | None:
    """Returns the milliseconds of an answer, None where the runtime refused."""
    if "median_ms" not in answer:
        _text("reason", answer["reason"])
        return None
    median = answer["median_ms"]
    if not isinstance(median, float | int) or not 0.0 < median < MOST_MS:
        raise ValueError(f"median_ms={median!r} must be milliseconds between 0 and {MOST_MS:g}")
    return float(median)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} must be text")
    return value


def _count(name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MOST_COUNT:
        raise ValueError(f"{name}={value!r} must be a whole number from 1 to {MOST_COUNT}")
    return value


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{name}={value!r} must be a list")
    return value


def _volume(name: str, sizes: Any) -> int:
    """Returns the product of sizes, one for each axis."""
    if len(_list(name, sizes)) > MOST_AXES:
        raise ValueError(f"{name} must have at most {MOST_AXES} axes")
    return math.prod(_count(name, size) for size in sizes)


def _work(key: str, batch: int) -> tuple[list[tuple[str, bool]], float]:
    """Returns what kinds of operations a chain has, and the numbers that it reads and its multiply-adds, together."""
    kinds, work = [], 0.0
    for operation in _list("chain", json.loads(key)):
        kinds.append((_text("kind", operation["kind"]), bool(operation["integer"])))
        channels, outputs, groups = (
            _count(name, operation[name]) for name in ("in_channels", "out_channels", "groups")
        )
        weights = channels * outputs * _volume("kernel", operation["kernel"]) / groups
        inputs = batch * _volume("input_shape", operation["input_shape"])
        positions = inputs / channels / _volume("stride", operation["stride"])
        work += inputs + weights * (1 + positions)
    if work > MOST_WORK:
        raise ValueError(f"its work of {work:.3g} numbers and multiply-adds is beyond any machine's")
    return kinds, work
