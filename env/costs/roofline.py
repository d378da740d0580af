"""Latencies and energies of a declared device, by the roofline model.

Source: Williams, Waterman and Patterson, Roofline: an insightful visual performance model for multicore architectures,
CACM 2009. An operation takes as long as its arithmetic at the peak or its bytes at the bandwidth, whichever is longer,
and the time to start it. Departure: every operation reads its weights and inputs from memory and writes its outputs
there, as if nothing stayed in a cache.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from plywise.env.costs import device
from plywise.env.costs.declared_devices import DECLARED
from plywise.env.costs.energy import FLOAT_BYTES, HOROWITZ, INTEGER_BYTES, UnitEnergies, held_bytes, read_bytes
from plywise.env.costs.latency import Chain
from plywise.env.network.operation import Operation
from plywise.env.runtime.integer_kernels import SDOT, weight_bits


class Roofline:
    """Milliseconds of chains of operations on a declared device, at batch 1; stands in for a `LatencyTable`.

    Attributes:
        device: its name and its energies, labelled `declared`.
        declared: what is published about it.
    """

    def __init__(self, name: str) -> None:
        """Takes a device of `DECLARED` by its name."""
        self.declared = found = DECLARED[name]
        energies = UnitEnergies(
            float_mac_pj=1e3 * found.watts[0] / found.float_gmacs[0],  # W / (10^9 a second) = nJ
            integer_mac_pj=1e3 * found.watts[0] / found.integer_gmacs[0],
            memory_byte_pj=found.byte_pj[0],
            cache_byte_pj=HOROWITZ.cache_byte_pj,
        )
        mark = hashlib.sha256(repr(dataclasses.astuple(found)).encode()).hexdigest()[:16]
        bits, reason = weight_bits(SDOT if found.dot_product else "")
        self.device = device.Device(
            name=name,
            fingerprint=f"{name}-{mark}",
            latency_source=device.DECLARED,
            threads=0,
            energies=energies,
            memory_bytes=int(1e6 * found.memory_mb[0]),
            integer_weight_bits=bits,
            integer_weight_reason=reason,
        )

    def milliseconds(self, chains: Sequence[Chain], progress: bool = True) -> NDArray[np.float64]:
        """Returns the modelled latency of each chain, `(n,)` milliseconds; nothing is measured."""
        return np.array([sum(map(self._milliseconds, chain)) for chain in chains], float)

    def why_refused(self, chain: Chain) -> str:
        """It refuses nothing."""
        raise NotImplementedError

    def source_of(self, chains: Sequence[Chain]) -> str:
        """Returns in words how the latencies of chains are known."""
        return f"{device.DECLARED}: roofline model of {self.declared.title}"

    def _milliseconds(self, operation: Operation) -> float:
        found = self.declared
        peak = (found.integer_gmacs if operation.integer else found.float_gmacs)[0]
        microseconds = max(operation.macs / peak, moved_bytes(operation) / found.gigabytes[0]) / 1e3
        return (microseconds + found.launch_us[0]) / 1e3


def moved_bytes(operation: Operation) -> float:
    """Returns the bytes of an operation's weights as the runtime holds them, of its inputs and of its outputs."""
    width = INTEGER_BYTES if operation.integer else FLOAT_BYTES
    return read_bytes(operation) + (math.prod(operation.input_shape) + math.prod(operation.output_shape)) * width


def needed_bytes(chains: Sequence[Chain]) -> float:
    """Returns the least memory that a network needs: all weights as the runtime holds them, most activations.

    Args:
        chains: its layers.
    """
    weights = sum(held_bytes(operation) for chain in chains for operation in chain)
    largest = max(
        (math.prod(each.input_shape) + math.prod(each.output_shape)) * (INTEGER_BYTES if each.integer else FLOAT_BYTES)
        for chain in chains
        for each in chain
    )
    return weights + largest
