"""A layer whose inputs and outputs are integers of at most 8 bits in deployment, simulated exactly in float."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.modules.assembly import AroundLayer
from plywise.compressors.modules.integer_layer import IntegerLayer
from plywise.compressors.modules.layers import CONVOLUTIONS

PLAIN = (*CONVOLUTIONS, nn.Linear)
"""Classes of layers that compute what an integer kernel does."""


@dataclass(frozen=True)
class ActivationRange:
    """An asymmetric unsigned range: `value = scale * (code - zero_point)`, code in `[0, 2**bits)`.

    Runtimes have 8-bit kernels: fewer bits are simulated on them, with codes cut to their range.
    """

    scale: float
    zero_point: int
    bits: int = 8

    @classmethod
    def spanning(cls, low: float, high: float, bits: int = 8) -> "ActivationRange":
        """Returns the range that holds `[low, high]` and represents zero exactly."""
        return cls.stepping((max(high, 0.0) - min(low, 0.0)) / (2**bits - 1), low, bits)

    @classmethod
    def stepping(cls, step: float, low: float, bits: int = 8) -> "ActivationRange":
        """Returns the range of a given step that starts at `low` and represents zero exactly."""
        # The scale is rounded to float32 because that is what the deployed file holds.
        scale = float(torch.tensor(max(step, 1e-8 / 255.0), dtype=torch.float32))
        return cls(scale, min(2**bits - 1, max(0, round(-min(low, 0.0) / scale))), bits)

    @property
    def largest_code(self) -> int:
        """Of `bits` bits."""
        return (1 << self.bits) - 1

    def __call__(self, values: Tensor) -> Tensor:
        """Rounds `values` (any shape) to the range; same rounding as ONNX QuantizeLinear."""
        if _learns(values):
            return _RoundThrough.apply(values, self)  # type: ignore[no-untyped-call, no-any-return]
        return self.codes(values).mul_(self.scale)

    def codes(self, values: Tensor) -> Tensor:
        """Returns the codes of `values`, less the zero point, as whole float32 numbers.

        A division, as in ONNX Runtime: a product with the reciprocal rounds other ties up.
        """
        return self.clipped(values / self.scale)

    def take(self, values: Tensor) -> Tensor:
        """Rounds `values` that nobody else reads: writes over them where no gradient is asked for."""
        return self(values) if _learns(values) else self.clipped(values.div_(self.scale)).mul_(self.scale)

    def clipped(self, codes: Tensor) -> Tensor:
        """Rounds values over the scale to codes, less the zero point, in place."""
        return codes.round_().clamp_(-self.zero_point, self.largest_code - self.zero_point)


def _learns(*tensors: Tensor | None) -> bool:
    """Whether a gradient is asked for."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_exporting()
        and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    )


class _RoundThrough(torch.autograd.Function):
    """Rounds to a range; gradients pass inside of it as if nothing was rounded (Bengio et al., 2013)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, span: ActivationRange) -> Tensor:
        codes = (values / span.scale).round_()
        clipped = span.clipped(codes.clone())
        ctx.save_for_backward(codes == clipped)
        return clipped.mul_(span.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None


class StaticQuantized(AroundLayer):
    """Runs `layer` between two roundings to integers.

    The runtime has integer kernels only for a layer whose input *and* output are integers, hence both.
    Where a ReLU follows the layer, `output_range` starts at zero and the ReLU costs nothing any more.
    A layer for which there is an integer kernel is computed as the kernel does it, number by number: one code that
    differs would spread through all layers behind it. Where gradients are asked for, hooks watch the layer, or a user
    exports it, it is computed in floats, which gives another code once in some hundred.

    Attributes:
        layer: the layer (or the chain of smaller ones) that runs inside.
        input_range, output_range: fixed ranges from calibration.
        rounds_inputs: whether it must; not where they are rounded to that range already, see `join`.
    """

    def __init__(self, layer: nn.Module, input_range: ActivationRange, output_range: ActivationRange) -> None:
        super().__init__()
        self.layer = layer
        self.input_range = input_range
        self.output_range = output_range
        self.rounds_inputs = True

    def forward(self, input: Tensor) -> Tensor:
        """Maps what `layer` maps, `(n, ...)`, with inputs and outputs rounded to their ranges."""
        integers = None if self._in_floats(input) else IntegerLayer.of(self.layer, self.input_range.scale)
        if integers is not None:
            factor = integers.scale * self.input_range.scale / self.output_range.scale
            span = self.input_range
            read = span.codes(input) if self.rounds_inputs else input.div(span.scale).round_()
            codes = integers(self.layer, read, factor)
            return self.output_range.clipped(codes).mul_(self.output_range.scale)
        outputs: Tensor = self.layer(self.input_range(input) if self.rounds_inputs else input)
        return self.output_range.take(outputs)  # a tenth of the time goes into memory for another tensor

    def _in_floats(self, inputs: Tensor) -> bool:
        layer = self.layer
        # A layer of another class may do more than its kernel: mix in groups, take means before.
        plain = type(layer).forward in [kind.forward for kind in PLAIN]
        hooks = layer._forward_hooks or layer._forward_pre_hooks
        return not plain or bool(hooks) or torch.compiler.is_exporting() or _learns(inputs, *layer.parameters())


def join(before: nn.Module, after: nn.Module) -> None:
    """Spares a module the rounding of its inputs where the one that they come from has rounded them to as many bits.

    To the range of that one: a second rounding to another would lose more, and the runtime would make one of both, in
    a range of its own.

    Args:
        before: a layer, or what has replaced it.
        after: another, changed in place, that reads what `before` puts out, or a ReLU or a pooling of it.
    """
    last, first = _part(before, -1), _part(after, 0)
    if not isinstance(first, StaticQuantized):
        return
    if isinstance(last, StaticQuantized) and last.output_range.bits == first.input_range.bits:
        first.input_range, first.rounds_inputs = last.output_range, False


def _part(module: nn.Module, place: int) -> nn.Module:
    """Returns the first or the last part of a chain."""
    return _part(module[place], place) if isinstance(module, nn.Sequential) else module
