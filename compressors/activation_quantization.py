"""8-bit activations, so that the runtime can use integer kernels."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from plywise.compressors.layers import WEIGHTED
from plywise.compressors.leaves import each_leaf
from plywise.compressors.static_quantized import ActivationRange, StaticQuantized
from plywise.compressors.statistics import LayerStatistics
from plywise.compressors.technique import Stage, Technique, choice

SHARES = tuple(torch.linspace(1, 0.5, 26).tolist())
"""Candidate ranges, as shares of the span of the values."""


@dataclass(frozen=True)
class ActivationQuantization(Technique):
    """Static unsigned 8-bit inputs and outputs, ranges from calibration.

    Needs weights of at most 7 bits in the same recipe: without VNNI, products of two unsigned and signed full
    8-bit numbers overflow the kernels' 16-bit sums.
    """

    name: ClassVar[str] = "activation_quantization"
    stage: ClassVar[Stage] = Stage.ACTIVATIONS
    summary: ClassVar[str] = "integer kernels: faster where channels are many, slower where they are few"
    source: ClassVar[str] = "Jacob et al., Quantization and Training for Integer-Arithmetic-Only Inference, 2018"

    range: str = choice("mse", grid=("minmax", "mse"), help="span of the values, or what loses least")

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses what has no integer kernel."""
        if not isinstance(layer, WEIGHTED):
            return f"the runtime has no integer kernel for {type(layer).__name__}"
        return None

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns `StaticQuantized` around the layer, or around each leaf of a chain."""
        return each_leaf(layer, statistics, self._leaf)

    def _leaf(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        wrapped = StaticQuantized(layer, self._range(statistics.inputs), self._range(statistics.outputs))
        return wrapped.train(layer.training)

    def _range(self, values: Tensor) -> ActivationRange:
        low, high = float(values[0]), float(values[-1])
        if self.range == "minmax":
            return ActivationRange.spanning(low, high)
        candidates = [ActivationRange.spanning(low * share, high * share) for share in SHARES]
        scale = torch.tensor([candidate.scale for candidate in candidates])
        zero = torch.tensor([candidate.zero_point for candidate in candidates], dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(values.expand(len(SHARES), -1), scale, zero, 0, 0, 255)
        return candidates[int((rounded - values).square().sum(1).argmin())]
