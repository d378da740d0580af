"""How many bytes compressed layers and outputs that are kept for later plans may take in this process."""

import ctypes
import os
import sys
from pathlib import Path

from plywise.compressors.errors import ConfigurationError
from plywise.compressors.plain_values import as_number

SHARE = 0.25
"""Of the machine's memory, where nothing else is asked for."""

LAYERS = 0.25
"""Of what may be kept: compressed layers; the rest are outputs."""

GIB = 1 << 30

CONTAINER = Path("/sys/fs/cgroup/memory.max")
"""Where Linux says what a container may take: a number of bytes, or `max`."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's `malloc.h`."""

KEPT_AT_ONCE = 32 << 20
"""Bytes of the largest block that is kept when it is freed, the most that glibc allows; four of them in all."""

_asked: list[int] = []


def limit_memory(gibibytes: float | None) -> None:
    """Sets the ceiling for networks that are studied from now on; None for the usual share of the machine's memory.

    Raises:
        ConfigurationError: where nothing could be kept, or the machine has less.
    """
    if gibibytes is None:
        _asked.clear()
        return
    machine, number = machine_memory(), as_number(gibibytes)
    if number is None or not 0 < number <= machine / GIB:
        raise ConfigurationError(
            f"memory={gibibytes!r} must be GiB, a number above 0 and at most what the machine has, {machine / GIB:.1f}"
        )
    _asked[:] = [int(number * GIB)]


def ceiling_of_layers() -> int:
    """Returns the bytes that compressed layers may take."""
    return int(LAYERS * _ceiling())


def ceiling_of_outputs() -> int:
    """Returns the bytes that remembered outputs may take."""
    return _ceiling() - ceiling_of_layers()


def keep_freed_memory() -> None:
    """Tells glibc to keep what one forward pass frees for the next one.

    Alongside gigabytes of outputs that stay, it would give the memory of each tensor back at once, and the system would
    zero as much again for the next: 290,000 page faults, a fifth of the time of ResNet-20's pass over 2,000 images.
    Elsewhere nothing is done.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, KEPT_AT_ONCE)
        library.mallopt(M_TRIM_THRESHOLD, 4 * KEPT_AT_ONCE)


def share(processes: int) -> float:
    """Returns the GiB that each of several processes may take of what this one might."""
    return _ceiling() / processes / GIB


def _ceiling() -> int:
    return _asked[0] if _asked else int(SHARE * machine_memory())


def machine_memory() -> int:
    """Returns the bytes that are there, or that the container may take where that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = CONTAINER.read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical
