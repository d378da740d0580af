"""The machine that a network will run on."""

import functools
import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path

import onnxruntime


@dataclass(frozen=True)
class Device:
    """Where latencies hold.

    Attributes:
        name: the processor, for people.
        fingerprint: changes with everything that changes latencies: processor, its instructions, runtime, threads.
        latency_source: how its latencies are known.
        threads: threads inside an operation.
    """

    name: str
    fingerprint: str
    latency_source: str = "measured"
    threads: int = 1

    @classmethod
    def here(cls, threads: int = 1) -> "Device":
        """Returns this machine's processor under ONNX Runtime."""
        name, flags = _processor()
        parts = (name, flags, onnxruntime.__version__, str(threads))
        return cls(name, hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16], threads=threads)


@functools.cache
def _processor() -> tuple[str, str]:
    """Returns the processor's name and its vector instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", facts.get("Features", "")).split()
    vector = sorted(flag for flag in flags if flag.startswith(("avx", "amx", "fma", "sse4", "asimd", "sve")))
    return facts.get("model name", platform.machine()), " ".join(vector)
