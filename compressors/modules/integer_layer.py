"""A layer as integer kernels compute it: whole numbers in, weights and sums of whole numbers, one factor a channel."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.compressors.modules.layers import CONVOLUTIONS, bias_of, weight_of

LARGEST_BIAS = 2.0**30
"""Bias codes stay below this, so that sums of 32 bits do not overflow."""


@runtime_checkable
class IntegerCoding(Protocol):
    """A number format of weights that may be signed integers of 8 bits times one scale for each output channel."""

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns codes in the shape of `weight` (float32) and scales `(out,)`; None where they do not fit 8 bits."""


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """What an integer kernel gets of a layer.

    The bias is rounded to the step of the sums, `input scale * weight scale`, since kernels add it to them. Where the
    weights of a channel are tiny and its bias is large, that channel gets a coarser scale, so that the bias fits.

    Attributes:
        codes: whole numbers of 8 bits, float32, in the shape of the weights.
        scale: `(out,)` of the weights.
        bias: `(out,)` whole numbers in steps of the sums, float32; None where there is no bias.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, layer: nn.Module, input_scale: float) -> "IntegerLayer | None":
        """Returns the integers of a layer, or None where there is no integer kernel for it.

        Args:
            layer: a leaf; its weights are values of the format attached to it.
            input_scale: step of what it reads.
        """
        fmt = getattr(layer, "weight_format", None)
        if not isinstance(layer, (*CONVOLUTIONS, nn.Linear)) or not isinstance(fmt, IntegerCoding):
            return None
        found = fmt.integers(weight_of(layer).float())
        if found is None:
            return None
        (codes, scale), bias = found, bias_of(layer)
        if bias is None:
            return cls(codes, scale, None)
        coarse = torch.maximum(scale, bias.abs() / (input_scale * LARGEST_BIAS))
        if not torch.equal(coarse, scale):
            codes = (codes * _column(scale / coarse, codes)).round_()
        return cls(codes, coarse, (bias / (input_scale * coarse)).round_())

    def __call__(self, layer: nn.Module, inputs: Tensor, factor: Tensor) -> Tensor:
        """Returns a layer's sums, each channel times its factor.

        Up to 2**24 the sums are exact, whatever the order of additions, for so far float32 holds all whole numbers. Of
        more than some 500 inputs that are all as large as can be they may pass that and be off in the last bits.

        Args:
            layer: whose integers these are.
            inputs: `(n, ...)` whole numbers: codes less their zero point.
            factor: `(out,)`.
        """
        if isinstance(layer, nn.Linear):
            return F.linear(inputs, self.codes, self.bias).mul_(factor)
        assert isinstance(layer, CONVOLUTIONS)
        sums: Tensor = layer._conv_forward(inputs, self.codes, self.bias)
        return sums.mul_(factor.view(-1, *(1,) * (sums.dim() - 2)))


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.dim() - 1))
