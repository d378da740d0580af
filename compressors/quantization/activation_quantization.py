"""Activations of 8 bits, so that the runtime can use integer kernels, or fewer."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from plywise.compressors.modules.layers import CONVOLUTIONS
from plywise.compressors.modules.static_quantized import ActivationRange, StaticQuantized, join
from plywise.compressors.recipes.hyperparameter import choice
from plywise.compressors.recipes.technique import Stage, Technique
from plywise.compressors.statistics.leaves import each_leaf
from plywise.compressors.statistics.statistics import LayerStatistics

CANDIDATES = 26
"""Ranges that `mse` tries, from the whole span of the values down to half of it, to a tenth below 8 bits."""

INSIDE = 0.999
"""Share of the values that the range of `percentile` spans, the same beyond both ends."""


@dataclass(frozen=True)
class ActivationQuantization(Technique):
    """Static unsigned inputs and outputs of few bits, ranges from calibration.

    Fewer than 8 bits are a simulation on 8-bit kernels: no faster, and for hardware that this project cannot measure.
    Needs weights of at most 8 bits in the same recipe, and of at most 7 on devices that sum products of 8 bits in 16
    bits, where they overflow; the device knows.
    """

    name: ClassVar[str] = "activation_quantization"
    stage: ClassVar[Stage] = Stage.ACTIVATIONS
    summary: ClassVar[str] = "integer kernels: faster where channels are many, slower where they are few"
    source: ClassVar[str] = (
        "Jacob et al., Quantization and Training for Integer-Arithmetic-Only Inference, 2018; fixed point: "
        "Courbariaux et al., Training Deep Neural Networks with Low Precision Multiplications, 2015, section 5"
    )

    range: str = choice(
        "mse",
        grid=("minmax", "mse", "percentile", "fixed_point"),
        help="span of all values, what loses least, span of 99.9 %, or span of all in steps of a power of two",
    )
    width: int = choice(8, grid=(8, 6, 4), low=2, high=8, help="bits of an input and an output")

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses what has no integer kernel."""
        if not isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
            return f"the runtime has no integer kernel for {type(layer).__name__}"
        return None

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns `StaticQuantized` around the layer, or around each leaf of a chain."""
        quantized = each_leaf(layer, statistics, self._leaf)
        if isinstance(quantized, nn.Sequential):
            for before, after in pairwise(quantized):
                join(before, after)
        return quantized

    def _leaf(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        wrapped = StaticQuantized(layer, self._range(statistics.inputs), self._range(statistics.outputs))
        return wrapped.train(layer.training)

    def _range(self, values: Tensor) -> ActivationRange:
        beyond = round((1 - INSIDE) / 2 * len(values)) if self.range == "percentile" else 0
        low, high = float(values[beyond]), float(values[-1 - beyond])
        spanning = ActivationRange.spanning(low, high, self.width)
        if self.range == "fixed_point":
            return ActivationRange.stepping(2.0 ** math.ceil(math.log2(spanning.scale)), low, self.width)
        if self.range != "mse":
            return spanning
        shares = torch.linspace(1, 0.5 if self.width == 8 else 0.1, CANDIDATES).tolist()
        candidates = [ActivationRange.spanning(low * share, high * share, self.width) for share in shares]
        scale = torch.tensor([candidate.scale for candidate in candidates])
        zero = torch.tensor([candidate.zero_point for candidate in candidates], dtype=torch.int32)
        copies = values.expand(CANDIDATES, -1)
        rounded = torch.fake_quantize_per_channel_affine(copies, scale, zero, 0, 0, spanning.largest_code)
        return candidates[int((rounded - values).square().sum(1).argmin())]
