"""A layer whose inputs and outputs are integers of at most 8 bits in deployment, simulated exactly in float."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
        if torch.is_grad_enabled() and values.requires_grad:  # the operator that lets gradients pass
            return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero_point, 0, self.largest_code)
        # The same values as the operator's, in a quarter of its time or less.
        return self._rounded(values * (1.0 / self.scale))

    def take(self, values: Tensor) -> Tensor:
        """Rounds `values` that nobody else reads: writes over them where no gradient is asked for."""
        if torch.is_grad_enabled() and values.requires_grad:
            return self(values)
        return self._rounded(values.mul_(1.0 / self.scale))

    def _rounded(self, codes: Tensor) -> Tensor:
        """Rounds values over the scale, in place: codes less the zero point."""
        return codes.round_().clamp_(-self.zero_point, self.largest_code - self.zero_point).mul_(self.scale)


class StaticQuantized(nn.Module):
    """Runs `layer` between two roundings to integers.

    The runtime has integer kernels only for a layer whose input *and* output are integers, hence both.
    Where a ReLU follows the layer, `output_range` starts at zero and the ReLU costs nothing any more.

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

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps what `layer` maps, `(n, ...)`, with inputs and outputs rounded to their ranges."""
        outputs: Tensor = self.layer(self.input_range(inputs) if self.rounds_inputs else inputs)
        return self.output_range.take(outputs)  # a tenth of the time goes into memory for another tensor


def join(before: nn.Module, after: nn.Module) -> None:
    """Spares a module the rounding of its inputs where the one that they come from has done the same.

    Args:
        before: a layer, or what has replaced it.
        after: another, changed in place, that reads what `before` puts out, or a ReLU of it.
    """
    last, first = _part(before, -1), _part(after, 0)
    if isinstance(last, StaticQuantized) and isinstance(first, StaticQuantized):
        first.rounds_inputs = last.output_range != first.input_range


def _part(module: nn.Module, place: int) -> nn.Module:
    """Returns the first or the last part of a chain."""
    return _part(module[place], place) if isinstance(module, nn.Sequential) else module
