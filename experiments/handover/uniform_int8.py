"""Uniform int8, which every report compares with."""

from plywise.compressors.recipes.plan import Plan
from plywise.env.costs.device import Device
from plywise.env.network.scheme import Scheme
from plywise.env.subject import Subject

ACTIVATION_BITS = 8
UNIFORM = "uniform_quantization(bits=7) + activation_quantization"
"""Uniform int8 as kernels of every processor take it: 8-bit activations, weights in [-64, 63]."""


def uniform_recipe(device: Device) -> str:
    """Returns 8-bit activations with weights of as many bits as integer kernels of the device take exactly."""
    return UNIFORM.replace("bits=7", f"bits={device.integer_weight_bits}")


def uniform_plan(subject: Subject) -> Plan:
    """Returns 8-bit weights and activations on every layer that can take them, 7-bit weights where 8 would overflow."""
    return Scheme.of({"*": uniform_recipe(subject.latency.device)}).on(subject.network)[0]


def uniform_format(device: Device) -> dict[str, str]:
    """Returns what the report says of it: `W7A8` or `W8A8`, the recipe, and why its weights have that many bits."""
    return {
        "format": f"W{device.integer_weight_bits}A{ACTIVATION_BITS}",
        "recipe": uniform_recipe(device),
        "weight_bits_reason": device.integer_weight_reason,
    }
