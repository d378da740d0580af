"""How many bits the weights of integer kernels may have: a matter of how a processor sums products of 8 bits."""

FEWEST, MOST = 7, 8
"""Bits of a weight next to activations of 8 bits. With 7, two products fit the 16 bits that any processor sums in."""

SDOT = "asimddp"
"""Of Arm cores."""

DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", SDOT, "i8mm")
"""Instructions, in the words of /proc/cpuinfo, that sum products of 8 bits in 32 bits. ONNX Runtime takes them wherever
a processor has them; without, on x86, it takes `pmaddubsw`, whose sums of 16 bits saturate."""

UNKNOWN = (
    "the processor is not known to sum products of 8 bits in 32 bits, and sums of 16 bits overflow with weights of 8"
)


def weight_bits(instructions: str) -> tuple[int, str]:
    """Returns the bits that weights next to 8-bit activations may have, and why.

    Args:
        instructions: of the processor, with blanks between, in the words of /proc/cpuinfo.
    """
    found = [name for name in DOT_PRODUCTS if name in instructions.split()]
    return (MOST, f"the processor's {found[0]} sums products of 8 bits in 32 bits") if found else (FEWEST, UNKNOWN)
