"""Scales of a uniform format that lose least, for each output channel."""

import torch
from torch import Tensor

from plywise.compressors.weight_format import UniformFormat

SHRINKS = torch.linspace(1.0, 0.2, 41)
"""Candidate scales, as shares of the one that spans the largest weight."""


def best_uniform_format(weights: Tensor, importance: Tensor, bits: int, symmetric: bool) -> UniformFormat:
    """Returns the format with the least weighted squared rounding error among shrunken min-max ranges.

    Args:
        weights: `(out, features)` float32.
        importance: `(out, features)`, positive: what an error at this weight costs (variance of its input).
        bits: 1 to 8.
        symmetric: whether zero sits in the middle of the symbols.
    """
    levels = 2**bits
    if symmetric:
        # Of the 2**b symbols, one more lies below zero than above.
        span = torch.maximum(-weights.amin(1) / (levels // 2), weights.amax(1) / max(1, levels // 2 - 1))
        zero = torch.full_like(span, levels // 2)
    else:
        low, high = weights.amin(1).clamp(max=0), weights.amax(1).clamp(min=0)
        span = (high - low) / (levels - 1)
        zero = (-low / span.clamp(min=1e-38)).round().clamp(0, levels - 1)
    span = torch.where(span > 0, span, torch.ones_like(span)).clamp(min=1e-35)
    best_error = torch.full_like(span, torch.inf)
    best_scale = span.clone()
    for shrink in SHRINKS.tolist():
        form = UniformFormat(bits, span * shrink, zero)
        # Errors are measured in units of the span, so that tiny and huge weights do not leave float32.
        error = ((((form.decode(form.encode(weights)) - weights) / span[:, None]) ** 2) * importance).sum(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, form.scale, best_scale)
    return UniformFormat(bits, best_scale, zero)
