"""Scales of a format that lose least, for each output channel."""

from collections.abc import Callable

import torch
from torch import Tensor

from plywise.compressors.formats.weight_format import UniformFormat, WeightFormat

SHRINKS = torch.linspace(1.0, 0.2, 41)
"""Candidate scales, as shares of the one that spans the largest weight."""

SMALLEST = 1e-35
"""Magnitude that smaller weights count as, so that scales do not leave float32."""

INSIDE = 0.99
"""Share of the weights that the range of `percentile` spans, the same beyond both ends."""


def best_uniform_format(
    weights: Tensor, importance: Tensor, bits: int, symmetric: bool, search: str = "mse"
) -> UniformFormat:
    """Returns the format with the least weighted squared rounding error among shrunken min-max ranges.

    Args:
        weights: `(out, features)` float32.
        importance: `(out, features)`, positive: what an error at this weight costs (variance of its input).
        bits: 1 to 8.
        symmetric: whether zero sits in the middle of the symbols.
        search: `mse`; `minmax` and `percentile` take the range that spans all or most weights instead.
    """
    lowest, highest = _outermost(weights, search)
    levels = 2**bits
    if symmetric:
        # Of the 2**b symbols, one more lies below zero than above.
        span = torch.maximum(-lowest / (levels // 2), highest / max(1, levels // 2 - 1))
        zero = torch.full_like(span, levels // 2)
    else:
        low, high = lowest.clamp(max=0), highest.clamp(min=0)
        span = (high - low) / (levels - 1)
        zero = (-low / span.clamp(min=1e-38)).round().clamp(0, levels - 1)
    span = torch.where(span > 0, span, torch.ones_like(span)).clamp(min=SMALLEST)
    shares = SHRINKS if search == "mse" else SHRINKS[:1]
    scale = best_scale(weights, importance, span[:, None] * shares, lambda scale: UniformFormat(bits, scale, zero))
    return UniformFormat(bits, scale, zero)


def best_scale(
    weights: Tensor, importance: Tensor, candidates: Tensor, format_of: Callable[[Tensor], WeightFormat]
) -> Tensor:
    """Returns for each output channel the scale of least weighted squared rounding error, `(out,)`.

    Args:
        weights, importance: `(out, features)`.
        candidates: `(out, count)` positive scales.
        format_of: maps scales `(out,)` to the format.
    """
    # Errors are measured in units of the first candidate, so that tiny and huge weights do not leave float32.
    unit, least = candidates[:, :1], torch.full_like(candidates[:, 0], torch.inf)
    best = candidates[:, 0].clone()
    for scale in candidates.T:
        fmt = format_of(scale)
        error = ((((fmt.decode(fmt.encode(weights)) - weights) / unit) ** 2) * importance).sum(1)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, scale, best)
    return best


def largest_weights(weights: Tensor) -> Tensor:
    """Returns the largest magnitude of each row of `(out, features)`; one where a row is zero: `(out,)`."""
    largest = weights.abs().amax(1)
    return torch.where(largest > 0, largest, torch.ones_like(largest)).clamp(min=SMALLEST)


def power_of_two_above(values: Tensor) -> Tensor:
    """Returns the least powers of two that are no smaller than positive values, in their shape."""
    fraction, exponent = torch.frexp(values)
    return torch.ldexp(torch.ones_like(values), exponent - (fraction == 0.5).int())


def _outermost(weights: Tensor, search: str) -> tuple[Tensor, Tensor]:
    if search != "percentile":
        return weights.amin(1), weights.amax(1)
    ordered = weights.sort(1).values
    beyond = round((1 - INSIDE) / 2 * ordered.shape[1])
    return ordered[:, beyond], ordered[:, -1 - beyond]
