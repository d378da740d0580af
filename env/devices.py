"""From what a user calls a device to its latencies."""

import os
from pathlib import Path

from plywise.compressors.errors import ConfigurationError, unknown_name
from plywise.env.declared_devices import DECLARED
from plywise.env.device import Device
from plywise.env.device_file import DeviceFile
from plywise.env.latency import Latencies, LatencyTable
from plywise.env.roofline import Roofline

HERE = "here"
"""Name of this machine."""


def open_device(device: str | None) -> Latencies:
    """Returns where the latencies of a device come from.

    Args:
        device: `here` or None for this machine with one thread and one input at a time, `here:4` with four threads,
            `here:4x8` with batches of eight as well, the name of a declared one, or a device file.

    Raises:
        ConfigurationError: if there is neither such a name nor such a file.
        FileFormatError: if the file is no device file.
    """
    if device is None or device == HERE:
        return LatencyTable()
    if device.startswith(f"{HERE}:"):
        return LatencyTable(device=Device.here(*_threads_and_batch(device)))
    if device.endswith(".json") or Path(device).is_file():
        return DeviceFile(Path(device))
    if device not in DECLARED:
        raise unknown_name("device", device, (HERE, *DECLARED))
    return Roofline(device)


def _threads_and_batch(device: str) -> tuple[int, int]:
    cores = os.cpu_count() or 1
    threads, times, batch = device.removeprefix(f"{HERE}:").partition("x")
    if not threads.isdecimal() or not 1 <= int(threads) <= cores:
        raise ConfigurationError(
            f"device {device!r}: threads must be a whole number from 1 to the {cores} cores here, as in {HERE}:{cores}"
        )
    if times and (not batch.isdecimal() or int(batch) < 1):
        raise ConfigurationError(f"device {device!r}: a batch must be a whole number from 1, as in {HERE}:{cores}x8")
    return int(threads), int(batch or 1)
