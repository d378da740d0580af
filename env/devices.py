"""From what a user calls a device to its latencies."""

from pathlib import Path

from plywise.compressors.errors import unknown_name
from plywise.env.declared_devices import DECLARED
from plywise.env.device_file import DeviceFile
from plywise.env.latency import Latencies, LatencyTable
from plywise.env.roofline import Roofline

HERE = "here"
"""Name of this machine."""


def open_device(device: str | None) -> Latencies:
    """Returns where the latencies of a device come from.

    Args:
        device: `here` or None for this machine, the name of a declared one, or a device file.

    Raises:
        ConfigurationError: if there is neither such a name nor such a file.
        FileFormatError: if the file is no device file.
    """
    if device is None or device == HERE:
        return LatencyTable()
    if device.endswith(".json") or Path(device).is_file():
        return DeviceFile(Path(device))
    if device not in DECLARED:
        raise unknown_name("device", device, (HERE, *DECLARED))
    return Roofline(device)
