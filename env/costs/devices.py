"""From what a user calls a device to its latencies."""

import os
from dataclasses import replace
from pathlib import Path

import onnxruntime

from plywise.compressors.errors import ConfigurationError, ModelError, unknown_name
from plywise.env.costs.declared_devices import DECLARED
from plywise.env.costs.device import Device
from plywise.env.costs.device_file import DeviceFile
from plywise.env.costs.latency import Latencies, LatencyTable
from plywise.env.costs.roofline import Roofline
from plywise.env.runtime.operation_graph import operation_graph
from plywise.env.runtime.runtime import open_session
from plywise.env.runtime.target_program import CUDA, Execution

HERE, CARD = "here", "cuda"
"""Names of this machine, and of the NVIDIA card in it."""


def open_device(device: str | None) -> Latencies:
    """Returns where the latencies of a device come from.

    Args:
        device: `here` or None for this machine with one thread and one input at a time, `here:4` with four threads,
            `here:4x8` with batches of eight as well; `cuda` for its NVIDIA card, `cuda:x8` with batches of eight; the
            name of a declared one, or a device file.

    Raises:
        ConfigurationError: if there is neither such a name nor such a file, or no such card.
        FileFormatError: if the file is no device file.
    """
    if device is None or device == HERE:
        return LatencyTable()
    if device.startswith(f"{HERE}:"):
        return LatencyTable(device=Device.here(*_threads_and_batch(device)))
    if device == CARD or device.startswith(f"{CARD}:"):
        return LatencyTable(device=_card(device))
    if device.endswith(".json") or Path(device).is_file():
        return _checked_here(DeviceFile(Path(device)))
    if device not in DECLARED:
        raise unknown_name("device", device, (HERE, CARD, *DECLARED))
    return _checked_here(Roofline(device))


def _checked_here(latency: DeviceFile | Roofline) -> DeviceFile | Roofline:
    """Limits the weights of integer kernels to what this machine computes exactly, for files are checked on it."""
    here = Device.here()
    if here.integer_weight_bits < latency.device.integer_weight_bits:
        reason = f"files are checked on this machine: {here.integer_weight_reason}"
        latency.device = replace(
            latency.device, integer_weight_bits=here.integer_weight_bits, integer_weight_reason=reason
        )
    return latency


def _threads_and_batch(device: str) -> tuple[int, int]:
    cores = os.cpu_count() or 1
    threads, times, batch = device.removeprefix(f"{HERE}:").partition("x")
    if not threads.isdecimal() or not 1 <= int(threads) <= cores:
        raise ConfigurationError(
            f"device {device!r}: threads must be a whole number from 1 to the {cores} cores here, as in {HERE}:{cores}"
        )
    return int(threads), _batch(device, batch, f"{HERE}:{cores}x8") if times else 1


def _batch(device: str, batch: str, example: str) -> int:
    if not batch.isdecimal() or int(batch) < 1:
        raise ConfigurationError(f"device {device!r}: a batch must be a whole number from 1, as in {example}")
    return int(batch)


def _card(device: str) -> Device:
    batch = _batch(device, device.removeprefix(f"{CARD}:x"), f"{CARD}:x8") if device != CARD else 1
    known = onnxruntime.get_available_providers()
    if CUDA not in known:
        raise ConfigurationError(
            f"device {device!r}: onnxruntime {onnxruntime.__version__} here has no {CUDA}, only {', '.join(known)}; "
            f"install onnxruntime-gpu in its place on a machine with an NVIDIA card, or take --device {HERE}"
        )
    try:
        open_session(operation_graph(()), Execution(provider=CUDA))
    except ModelError as error:
        raise ConfigurationError(f"device {device!r}: {error}; its driver and libraries must fit together") from error
    return Device.here(batch=batch, provider=CUDA)
