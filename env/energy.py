"""Modelled energy of a chain of operations, from the energy of a single multiply-add and a single byte.

Source: Horowitz, Computing's Energy Problem (and what we can do about it), ISSCC 2014, figure 1.1.9, 45 nm, 0.9 V:
float32 multiply 3.7 pJ and add 0.9 pJ; int8 multiply 0.2 pJ, int32 add 0.1 pJ; 64 bits from an 8 kB cache 10 pJ,
from a 32 kB one 20 pJ, from a 1 MB one 100 pJ, from DRAM 1.3 to 2.6 nJ. The model is ours: it ranks plans, it
predicts no meter.
"""

import math
from collections.abc import Sequence

from plywise.env.operation import Operation

SOURCE = "modelled"
"""What reports say about these figures."""

FLOAT_MAC_PJ = 3.7 + 0.9
INTEGER_MAC_PJ = 0.2 + 0.1

DRAM_BYTE_PJ = 1300.0 / 8
"""A byte of weights: read once for each inference, in its stored bits. The lower end of the source's range."""

CACHE_BYTE_PJ = 100.0 / 8
"""A byte of activations: written and read on the chip, where at batch 1 they fit (the source's 1 MB cache)."""

PJ_PER_MJ = 1e9
FLOAT_BYTES, INTEGER_BYTES = 4, 1


def energy_mj(chain: Sequence[Operation], weight_bytes: float) -> float:
    """Returns the modelled energy of one inference at batch 1, in millijoules.

    Args:
        chain: what runs, in order.
        weight_bytes: bytes of its weights as they are stored.
    """
    return weight_bytes * _read_share(chain) * DRAM_BYTE_PJ / PJ_PER_MJ + sum(map(_running_mj, chain))


def plain_weight_bytes(chain: Sequence[Operation], bits: float = 32.0) -> float:
    """Returns the bytes of a chain's weights at `bits` each and of its biases at 32 bits."""
    weights = sum(math.prod(operation.weight_shape) for operation in chain)
    biases = sum(operation.out_channels for operation in chain if operation.bias)
    return weights * bits / 8 + biases * FLOAT_BYTES


def _read_share(chain: Sequence[Operation]) -> float:
    """Returns which share of the weights is read: of an embedding's rows at most as many as there are indices."""
    stored = read = 0.0
    for operation in chain:
        weights = math.prod(operation.weight_shape)
        rows = math.prod(operation.input_shape) / operation.out_channels if operation.kind == "embedding" else 1.0
        stored, read = stored + weights, read + weights * min(1.0, rows)
    return read / stored if stored else 1.0


def _running_mj(operation: Operation) -> float:
    mac, width = (INTEGER_MAC_PJ, INTEGER_BYTES) if operation.integer else (FLOAT_MAC_PJ, FLOAT_BYTES)
    moved = math.prod(operation.input_shape) + math.prod(operation.output_shape)
    return (operation.macs * mac + moved * width * CACHE_BYTE_PJ) / PJ_PER_MJ
