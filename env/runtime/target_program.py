"""Times small ONNX models; runs alone, on any machine with Python 3.8 or later, numpy and onnxruntime.

`plywise profile --ask questions.zip` packs this file with the models that a network's prices need. On the target,
`python3 questions.zip device.json` times them and writes the device file. Plywise times its own models with it too.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

ANSWERS = "plywise-device/1"
"""Name and version of the device file."""

WARM_UP_RUNS = 3
BLOCK_RUNS = 3
LEAST_BLOCKS = 5
BUDGET_SECONDS = 0.04
LEAST_SECONDS = 1e-7
"""Of a block: a processor's clock may stand still for a moment where a host shares its cores."""
SPREAD = 0.03
NOISY = 0.2
"""Share of the median by which quartiles may differ before a machine counts as busy."""
PATIENCE = 4
"""How many times longer a busy machine may be measured."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as of plywise's own commands."""


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
"""Who computes, in the runtime's words."""


class Execution(NamedTuple):
    """How models are run: threads inside an operation, and who computes."""

    threads: int = 1
    provider: str = CPU


def processor() -> tuple[str, str]:
    """Returns the processor's name and its vector instructions."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            pairs = [line.partition(":") for line in file]
    except OSError:
        return platform.processor() or platform.machine(), platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    flags = facts.get("flags", facts.get("Features", "")).split()
    vector = sorted(flag for flag in flags if flag.startswith(("avx", "amx", "fma", "sse4", "asimd", "sve", "i8mm")))
    return facts.get("model name", facts.get("Model", platform.machine())), " ".join(vector)


def graphics_card() -> str:
    """Returns the name of the first NVIDIA card and its driver's version."""
    command = ("nvidia-smi", "--id=0", "--query-gpu=name,driver_version", "--format=csv,noheader")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "NVIDIA card"


def fingerprint(execution: Execution) -> str:
    """Returns what changes with everything that changes latencies: processor, its instructions, runtime, threads."""
    parts = [*processor(), onnxruntime.__version__, str(execution.threads)]
    if execution.provider == CUDA:
        parts += [execution.provider, graphics_card()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Returns the runtime's options: so many threads inside an operation, one operation at a time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def open_session(model: str | bytes, execution: Execution, optimised: bool = True) -> onnxruntime.InferenceSession:
    """Loads the file of a name or a serialised model; raises the runtime's exceptions, which share no base class."""
    options = session_options(execution.threads)
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=[execution.provider])
    if execution.provider not in session.get_providers():  # the runtime takes the processor instead and goes on
        raise RuntimeError(f"onnxruntime {onnxruntime.__version__} cannot load {execution.provider}")
    return session


def clock(execution: Execution) -> Callable[[], float]:
    """Returns what tells the seconds: of one thread those of the processor, where others on the machine count less."""
    fine = time.get_clock_info("thread_time").resolution <= 1e-6
    return time.thread_time if execution == Execution() and fine else time.perf_counter


def block_times(run: Callable[[], object], execution: Execution) -> list[float]:
    """Returns the seconds of one call of `run`, block by block, until their median is steady or the time is up."""
    seconds = clock(execution)
    return _blocks(lambda: _block(run, seconds), [run])


def relative_times(
    run: Callable[[], object],
    reference: Callable[[], object],
    execution: Execution,
    spread: float = SPREAD,
    budget: float = BUDGET_SECONDS,
) -> list[float]:
    """Returns the time of `run` over that of `reference`, interleaved, until the median is steady or the time is up.

    What slows the whole machine for a while slows both, so their ratio varies less than either.
    """
    seconds = clock(execution)
    return _blocks(lambda: _block(run, seconds) / _block(reference, seconds), (run, reference), spread, budget)


def _block(run: Callable[[], object], seconds: Callable[[], float]) -> float:
    start = seconds()
    for _ in range(BLOCK_RUNS):
        run()
    return max(seconds() - start, LEAST_SECONDS) / BLOCK_RUNS


def _blocks(
    measure: Callable[[], float],
    warm_up: Sequence[Callable[[], object]],
    spread: float = SPREAD,
    budget: float = BUDGET_SECONDS,
) -> list[float]:
    for run in [*warm_up] * WARM_UP_RUNS:
        run()
    started = time.perf_counter()
    blocks = [measure() for _ in range(LEAST_BLOCKS)]
    while not steady(blocks, spread):
        patience = PATIENCE if variation(blocks) > NOISY else 1
        if time.perf_counter() - started > budget * patience:
            break
        blocks.append(measure())
    return blocks


def variation(blocks: Sequence[float]) -> float:
    """Returns by how much quartiles differ, as a share of the median."""
    low, median, high = statistics.quantiles(blocks, n=4)
    return (high - low) / median


def steady(blocks: list[float], spread: float = SPREAD) -> bool:
    """Returns whether the standard error of the median, from the quartiles, is below the wanted share of it."""
    # 0.93 = 1.253 / 1.349: median's standard error for a normal spread, whose quartiles lie 1.349 sigma apart.
    return bool(0.93 * variation(blocks) < spread * len(blocks) ** 0.5)


def answer(model: bytes, shape: Sequence[int], execution: Execution) -> dict[str, Any]:
    """Returns median and quartiles of a model in milliseconds, or the runtime's reason for refusing it."""
    try:
        session = open_session(model, execution)
        indices = session.get_inputs()[0].type == "tensor(int64)"
        feed = {"input": np.ones(shape, np.int64 if indices else np.float32)}
        blocks = block_times(lambda: session.run(None, feed), execution)
    except Exception as error:  # the runtime's exceptions share no base class
        return {"reason": str(error)}
    low, median, high = (1e3 * seconds for seconds in statistics.quantiles(blocks, n=4))
    return {"median_ms": median, "low_ms": low, "high_ms": high}


def main(arguments: Sequence[str]) -> str | int | None:
    """Times the models of the archive that this program lies in and writes the device file.

    Every time is kept at once in a file alongside it (`.part`), from which the same command goes on.

    Returns:
        what `sys.exit` takes: None where the file is written, else what went wrong, or 130 after Ctrl-C.
    """
    if len(arguments) != 2:
        return "usage: python3 questions.zip device.json"
    archive, path = arguments
    problem = _unwritable(path)
    if problem is not None:
        return problem
    kept = f"what was measured is kept in {path}.part, and the same command goes on from there"
    try:
        return write_answers(archive, path)
    except KeyboardInterrupt:
        print(f"stopped; {kept}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        return f"{error.strerror or error}; {kept}"


def _unwritable(path: str) -> str | None:
    """Returns why a device file cannot be written, None where it can be."""
    if os.path.isdir(path):
        return f"{path} is a folder; name a file, such as device.json"
    try:
        with open(path + ".part", "a", encoding="utf-8"):
            return None
    except OSError as error:
        return f"cannot write {path}.part: {error.strerror}; name another file"


def write_answers(archive: str, path: str) -> str | None:
    """Times the models of an archive and writes the device file; returns what went wrong, None where nothing did."""
    with zipfile.ZipFile(archive) as questions:
        asked = json.loads(questions.read("questions.json"))
        execution = Execution(*asked["execution"])
        head = {
            "format": ANSWERS,
            "instructions": processor()[1] if execution.provider == CPU else "",
            "name": graphics_card() if execution.provider == CUDA else processor()[0],
            "fingerprint": fingerprint(execution),
            "runtime": f"onnxruntime {onnxruntime.__version__}",
            "threads": execution.threads,
            "provider": execution.provider,
            "batch": asked["batch"],
        }
        answers = _answers(questions, asked["chains"], execution, head, path + ".part")
    timed = [found for found in answers if "median_ms" in found]
    if len(timed) == 0:
        os.remove(path + ".part")
        return f"{head['runtime']} refuses every model ({answers[0]['reason']}); install a newer one"
    noisy = sum(found["high_ms"] - found["low_ms"] > NOISY * found["median_ms"] for found in timed)
    if noisy:
        print(f"{noisy} of {len(timed)} times vary by over 20 %; a machine with less to do gives better ones")
    with open(path + ".whole", "w", encoding="utf-8") as file:
        json.dump({**head, "chains": answers}, file, indent=1)
    os.replace(path + ".whole", path)
    os.remove(path + ".part")
    print(f"written to {path}; give it to plywise as --device {path}")
    return None


def _answers(
    questions: zipfile.ZipFile, chains: Sequence[Any], execution: Execution, head: dict[str, Any], part: str
) -> list[dict[str, Any]]:
    """Returns the answer to each question, from the file of what was measured before, or measured now and put there.

    What the runtime refuses is not kept: it takes no time, and another run may find what was missing.
    """
    # Names and checksums of all that the archive holds: archives of the same questions differ in their dates.
    digest = hashlib.sha256(repr([(each.filename, each.CRC) for each in questions.infolist()]).encode()).hexdigest()
    mark = json.dumps({**head, "questions": digest})
    known = _kept(part, mark)
    with open(part, "a" if known else "w", encoding="utf-8", buffering=1) as file:
        file.write("\n" if known else mark + "\n")  # an empty line behind one that a kill has cut short
        try:
            for place, question in enumerate(chains):
                key = question["chain"]
                if key not in known:
                    found = answer(questions.read(question["model"]), question["shape"], execution)
                    known[key] = {"chain": key, **found}
                    if "median_ms" in found:
                        file.write(json.dumps(known[key]) + "\n")
                print(f"\r{place + 1} of {len(chains)} layers measured", end="", file=sys.stderr, flush=True)
        finally:
            print(file=sys.stderr)
    return [known[question["chain"]] for question in chains]


def _kept(part: str, mark: str) -> dict[str, dict[str, Any]]:
    """Returns what an earlier run has measured, by chain; nothing where its questions, machine or runtime differ."""
    with open(part, encoding="utf-8", errors="replace") as file:
        first = file.readline()
        found = [_parsed(line) for line in file]
    if first != mark + "\n":
        if first:
            print(f"{part} is of other questions, another machine or another runtime; measuring anew", file=sys.stderr)
        return {}
    known = {each["chain"]: each for each in found if each is not None}
    print(f"{part} holds {len(known)} layers already; going on", file=sys.stderr)
    return known


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:  # cut short
        return None
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv))
