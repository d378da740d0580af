"""Modelled energy of a chain of operations, from the energy of a single multiply-add and a single byte.

Source: Horowitz, Computing's Energy Problem (and what we can do about it), ISSCC 2014, figure 1.1.9, 45 nm, 0.9 V:
float32 multiply 3.7 pJ and add 0.9 pJ; int8 multiply 0.2 pJ, int32 add 0.1 pJ; 64 bits from an 8 kB cache 10 pJ,
from a 32 kB one 20 pJ, from a 1 MB one 100 pJ, from DRAM 1.3 to 2.6 nJ. The model is ours: it ranks plans, it
predicts no meter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from plywise.env.network.operation import Operation


@dataclass(frozen=True)
class UnitEnergies:
    """Energies of single operations and bytes, picojoules.

    Attributes:
        float_mac_pj, integer_mac_pj: of a multiply-add in fp32 and in int8.
        memory_byte_pj: of a byte of weights: read once for each inference, in its stored bits.
        cache_byte_pj: of a byte of activations: written and read on the chip, where at batch 1 they fit.
    """

    float_mac_pj: float
    integer_mac_pj: float
    memory_byte_pj: float
    cache_byte_pj: float


HOROWITZ = UnitEnergies(
    float_mac_pj=3.7 + 0.9, integer_mac_pj=0.2 + 0.1, memory_byte_pj=1300.0 / 8, cache_byte_pj=100.0 / 8
)
"""Those of the source: its DRAM at the lower end of its range, its 1 MB cache."""

PJ_PER_MJ = 1e9
FLOAT_BYTES, INTEGER_BYTES = 4, 1


def energy_mj(chain: Sequence[Operation], weight_bytes: float, units: UnitEnergies = HOROWITZ) -> float:
    """Returns the modelled energy of one inference at batch 1, in millijoules.

    Args:
        chain: what runs, in order.
        weight_bytes: bytes of its weights as they are stored.
        units: of the device.
    """
    running = sum(_running_pj(operation, units) for operation in chain)
    return (weight_bytes * read_share(chain) * units.memory_byte_pj + running) / PJ_PER_MJ


def plain_weight_bytes(chain: Sequence[Operation], bits: float = 32.0) -> float:
    """Returns the bytes of a chain's weights at `bits` each and of its biases at 32 bits."""
    weights = sum(math.prod(operation.weight_shape) for operation in chain)
    biases = sum(operation.out_channels for operation in chain if operation.bias)
    return weights * bits / 8 + biases * FLOAT_BYTES


def read_share(chain: Sequence[Operation]) -> float:
    """Returns which share of the weights is read: of an embedding's rows at most as many as there are indices."""
    stored = read = 0.0
    for operation in chain:
        weights = math.prod(operation.weight_shape)
        rows = math.prod(operation.input_shape) / operation.out_channels if operation.kind == "embedding" else 1.0
        stored, read = stored + weights, read + weights * min(1.0, rows)
    return read / stored if stored else 1.0


def _running_pj(operation: Operation, units: UnitEnergies) -> float:
    mac, width = units.float_mac_pj, FLOAT_BYTES
    if operation.integer:
        mac, width = units.integer_mac_pj, INTEGER_BYTES
    moved = math.prod(operation.input_shape) + math.prod(operation.output_shape)
    return operation.macs * mac + moved * width * units.cache_byte_pj
