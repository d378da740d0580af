"""Uniform int8, which every report compares with."""

from plywise.compressors.recipes.plan import Plan
from plywise.env.network.scheme import Scheme
from plywise.env.subject import Subject

UNIFORM = "uniform_quantization(bits=7) + activation_quantization"
"""Uniform int8 as the runtime's fast kernels want it: 8-bit activations, weights in [-64, 63]."""


def uniform_plan(subject: Subject) -> Plan:
    """Returns 8-bit weights and activations on every layer that can take them."""
    return Scheme.of({"*": UNIFORM}).on(subject.network)[0]
