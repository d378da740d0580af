"""Rounds the weights of a layer to a format: each alone, or so that their errors cancel in the output."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from plywise.compressors.formats.grouped_format import GroupedFormat
from plywise.compressors.formats.weight_format import UniformFormat, WeightFormat, set_weight_format, short
from plywise.compressors.modules.layers import WEIGHTED, corrected_bias, weight_matrices, weight_of, with_weights
from plywise.compressors.recipes.hyperparameter import choice
from plywise.compressors.statistics.error_feedback import BLOCK, Rounding, damped
from plywise.compressors.statistics.statistics import LayerStatistics

SWEEPS = 6
"""How often `adaptive` passes over all weights at most."""

Nearest = Callable[[Tensor, Tensor], Tensor]
"""Maps one weight of each output channel `(out,)` and its feature's index `(out,)` to the nearest values."""


def rounding_choice() -> str:
    """Declares the hyperparameter `rounding` of techniques whose alphabets error feedback can use."""
    field: str = choice("gptq", grid=("nearest", "gptq"), help="each weight alone, or with error feedback")
    return field


def without_weights(layer: nn.Module) -> str | None:
    """Returns why the layer has no weights to quantise, or None where it has."""
    return None if isinstance(layer, WEIGHTED) else f"{type(layer).__name__} has no weights to quantise"


def importance_of(layer: nn.Module, statistics: LayerStatistics) -> Tensor:
    """Returns what an error at each weight costs, `(out, features)`, positive: the variance of its input.

    In an embedding it costs as much as its row is read.
    """
    variance = statistics.covariance.diagonal(dim1=-2, dim2=-1)
    variance = variance + 0.01 * variance.mean(-1, keepdim=True) + 1e-12  # (groups, features)
    cost = variance[:, None, :].expand_as(weight_matrices(layer)).flatten(0, 1)
    return cost if statistics.frequency is None else cost * statistics.frequency[:, None]


def quantised(layer: nn.Module, statistics: LayerStatistics, fmt: WeightFormat, rounding: str) -> nn.Module:
    """Returns the layer with weights of a format and the bias that keeps the mean output.

    Weights that are zero stay zero where the format has a zero. Scales and biases are rounded to bfloat16: they
    would take half of the file of a small layer of few bits.

    Args:
        layer: left untouched.
        statistics: of its inputs.
        fmt: the format, which fits its output channels.
        rounding: `nearest`; `gptq`: error feedback; `adaptive`: error feedback, then coordinate descent.
    """
    fmt = fmt.short()
    weights = weight_matrices(layer)  # (groups, out / groups, features)
    rows = weights.flatten(0, 1)
    if rounding == "nearest":
        matrices = fmt.decode(fmt.encode(rows)).view_as(weights)
    else:
        zeros = weights == 0
        mask = ~zeros if bool(zeros.any()) and _has_zero(fmt, rows) else None
        nearest, feedback = _nearest(fmt, len(rows)), statistics.feedback
        matrices = feedback(weights, _in_order(nearest, feedback.order, weights.shape[1]), mask)
        if rounding == "adaptive":
            matrices = refined(weights, matrices, statistics.covariance, nearest, mask)
    bias = corrected_bias(layer, matrices, statistics.mean)
    new = with_weights(layer, matrices, None if bias is None else short(bias))
    set_weight_format(new, fmt, weight_of(new))
    return new


def refined(weights: Tensor, rounded: Tensor, covariance: Tensor, nearest: Nearest, mask: Tensor | None) -> Tensor:
    """Improves rounded weights one by one until the output's squared error falls no more, or SWEEPS times.

    The error is a parabola in each weight, so the value nearest to its lowest point is the best for this weight: no
    step makes the error larger. What is sought is what AdaRound seeks by gradient descent.
    Source: Nagel et al., Up or Down? Adaptive Rounding, 2020, section 3 (the objective).

    Args:
        weights, rounded: `(groups, rows, features)`: the original, and values of the alphabet.
        covariance: of the inputs, `(groups, features, features)`.
        nearest: rounds to the alphabet.
        mask: boolean like `weights`; where False the result is exactly zero.

    Returns:
        `(groups, rows, features)`.
    """
    metric = damped(covariance).float()
    # Features first, so that one weight of each row is one piece of memory.
    target, result = weights.transpose(1, 2).contiguous(), rounded.transpose(1, 2).clone()
    kept = None if mask is None else mask.transpose(1, 2)
    groups, features, rows = target.shape
    for _ in range(SWEEPS):
        before = result.clone()
        for start in range(0, features, BLOCK):
            stop = min(start + BLOCK, features)
            pull = metric[:, start:stop] @ (result - target)  # (groups, block, rows)
            for column in range(start, stop):
                own = metric[:, column, column, None]
                lowest = result[:, column] - pull[:, column - start] / own
                index = torch.full((groups * rows,), column)
                value = nearest(lowest.reshape(-1), index).view_as(lowest)
                if kept is not None:
                    value = value * kept[:, column]
                step = value - result[:, column]
                pull += metric[:, start:stop, column, None] * step[:, None]
                result[:, column] = value
        if torch.equal(before, result):
            break
    return result.transpose(1, 2)


def _nearest(fmt: WeightFormat, count: int) -> Nearest:
    """Returns what rounds columns of `count` weights to a format."""
    if isinstance(fmt, GroupedFormat):
        return lambda column, features: _uniform(fmt.at(features), count)(column)
    rounding = _uniform(fmt, count) if isinstance(fmt, UniformFormat) else None
    return lambda column, features: fmt.decode(fmt.encode(column)) if rounding is None else rounding(column)


def _uniform(fmt: UniformFormat, count: int) -> Rounding:
    scale, zero, top = fmt.scale.expand(count), fmt.zero_point.expand(count), 2**fmt.width - 1
    return lambda column: torch.fake_quantize_per_channel_affine(column, scale, zero, 0, 0, top)


def _in_order(nearest: Nearest, order: Tensor, rows: int) -> Rounding:
    """Returns the rounding of error feedback, which takes the columns in its own order `(groups, features)`."""
    features = iter(order.T.repeat_interleave(rows, 1))  # (groups * rows,) each
    return lambda column: nearest(column, next(features))


def _has_zero(fmt: WeightFormat, rows: Tensor) -> bool:
    zeros = torch.zeros_like(rows)
    return torch.equal(fmt.decode(fmt.encode(zeros)), zeros)
