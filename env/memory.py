"""How many bytes compressed layers and outputs that are kept for later plans may take in this process."""

import os
from pathlib import Path

from plywise.compressors.errors import ConfigurationError

SHARE = 0.25
"""Of the machine's memory, where nothing else is asked for."""

LAYERS = 0.25
"""Of what may be kept: compressed layers; the rest are outputs."""

GIB = 1 << 30

CONTAINER = Path("/sys/fs/cgroup/memory.max")
"""Where Linux says what a container may take: a number of bytes, or `max`."""

_asked: list[int] = []


def limit_memory(gibibytes: float | None) -> None:
    """Sets the ceiling for networks that are studied from now on; None for the usual share of the machine's memory.

    Raises:
        ConfigurationError: where nothing could be kept, or the machine has less.
    """
    if gibibytes is None:
        _asked.clear()
        return
    machine = _machine()
    if not 0 < gibibytes * GIB <= machine:
        raise ConfigurationError(
            f"memory={gibibytes:g} GiB must be above 0 and at most what the machine has, {machine / GIB:.1f}"
        )
    _asked[:] = [int(gibibytes * GIB)]


def ceiling_of_layers() -> int:
    """Returns the bytes that compressed layers may take."""
    return int(LAYERS * _ceiling())


def ceiling_of_outputs() -> int:
    """Returns the bytes that remembered outputs may take."""
    return _ceiling() - ceiling_of_layers()


def share(processes: int) -> float:
    """Returns the GiB that each of several processes may take of what this one might."""
    return _ceiling() / processes / GIB


def _ceiling() -> int:
    return _asked[0] if _asked else int(SHARE * _machine())


def _machine() -> int:
    """Returns the bytes that are there, or that the container may take where that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = CONTAINER.read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical
