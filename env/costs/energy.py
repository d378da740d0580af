"""Modelled energy of a chain of operations, from the energy of a single multiply-add and a single byte.

Source: Horowitz, Computing's Energy Problem (and what we can do about it), ISSCC 2014, figure 1.1.9, 45 nm, 0.9 V:
float32 multiply 3.7 pJ and add 0.9 pJ; int8 multiply 0.2 pJ, int32 add 0.1 pJ; 64 bits from an 8 kB cache 10 pJ,
from a 32 kB one 20 pJ, from a 1 MB one 100 pJ, from DRAM 1.3 to 2.6 nJ. The model is ours: it ranks plans, it
predicts no meter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from plywise.env.network.network import Network
from plywise.env.network.operation import Operation


@dataclass(frozen=True)
class UnitEnergies:
    """Energies of single operations and bytes, picojoules.

    Attributes:
        float_mac_pj, integer_mac_pj: of a multiply-add in fp32 and in int8.
        memory_byte_pj: of a byte of weights: read once for each inference, as the runtime holds them.
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


def energy_mj(chain: Sequence[Operation], units: UnitEnergies = HOROWITZ) -> float:
    """Returns the modelled energy of one inference at batch 1, in millijoules.

    Args:
        chain: what runs, in order.
        units: of the device.
    """
    return sum(read_bytes(each) * units.memory_byte_pj + _running_pj(each, units) for each in chain) / PJ_PER_MJ


def tied_energy(network: Network, units: UnitEnergies) -> float:
    """Returns the modelled energy of the layers of a network that are tied to others, in millijoules."""
    return sum(layer.runs * energy_mj(network.tied_operations[layer.name], units) for layer in network.tied)


def held_bytes(operation: Operation) -> float:
    """Returns the bytes of an operation's weights and biases as the runtime holds them, whatever the file takes.

    Symbols of few bits and entropy codes are decoded once, when the file is loaded: into integers for integer kernels,
    into floats for all others. Zeros are held like other numbers, biases as 32 bits.
    """
    width = INTEGER_BYTES if operation.integer else FLOAT_BYTES
    return math.prod(operation.weight_shape) * width + operation.out_channels * operation.bias * FLOAT_BYTES


def read_bytes(operation: Operation) -> float:
    """Returns those of the held bytes that an inference reads: of an embedding a row for each index, else all."""
    if operation.kind != "embedding":
        return held_bytes(operation)
    rows = min(operation.out_channels, math.prod(operation.input_shape))
    return held_bytes(operation) * rows / operation.out_channels


def _running_pj(operation: Operation, units: UnitEnergies) -> float:
    mac, width = units.float_mac_pj, FLOAT_BYTES
    if operation.integer:
        mac, width = units.integer_mac_pj, INTEGER_BYTES
    moved = math.prod(operation.input_shape) + math.prod(operation.output_shape)
    return operation.macs * mac + moved * width * units.cache_byte_pj
