"""Weights on a uniform grid of a few bits."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from plywise.compressors.layers import WEIGHTED, corrected_bias, weight_matrices, weight_of, with_weights
from plywise.compressors.leaves import each_leaf
from plywise.compressors.scale_search import best_uniform_format
from plywise.compressors.statistics import LayerStatistics
from plywise.compressors.technique import Stage, Technique, choice
from plywise.compressors.weight_format import UniformFormat, set_weight_format


@dataclass(frozen=True)
class UniformQuantization(Technique):
    """Rounds weights to a uniform grid, one scale per output channel found by least squared error.

    `rounding="gptq"` lets the weights still to come repair the error of those already rounded. Zeros stay zeros.
    """

    name: ClassVar[str] = "uniform_quantization"
    stage: ClassVar[Stage] = Stage.WEIGHTS
    summary: ClassVar[str] = "weights of 8 to 2 bits: smaller files; faster only together with int8 activations"
    source: ClassVar[str] = (
        "Krishnamoorthi, Quantizing Deep Convolutional Networks, 2018, section 2 (grids); "
        "Frantar et al., GPTQ, 2023, section 3 (rounding)"
    )

    bits: int = choice(8, grid=(8, 7, 6, 4, 3, 2), low=1, high=8, help="bits of a weight")
    scheme: str = choice("symmetric", grid=("symmetric", "affine"), help="whether zero sits in the middle")
    rounding: str = choice("gptq", grid=("nearest", "gptq"), help="each weight alone, or with error feedback")

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses layers without weights."""
        if not isinstance(layer, WEIGHTED):
            return f"{type(layer).__name__} has no weights to quantise"
        return None

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns the layer, or each leaf of a chain, with weights of a few bits and their format attached."""
        return each_leaf(layer, statistics, self._leaf)

    def _leaf(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        weights = weight_matrices(layer)  # (groups, out / groups, features)
        form = self._format(weights, statistics)
        if self.rounding == "gptq":
            top = 2**self.bits - 1

            def rounding(column: Tensor) -> Tensor:
                return torch.fake_quantize_per_channel_affine(column, form.scale, form.zero_point, 0, 0, top)

            zeros = weights == 0
            mask = ~zeros if bool(zeros.any()) else None
            matrices = statistics.feedback(weights, rounding, mask)
        else:
            rows = weights.flatten(0, 1)
            matrices = form.decode(form.encode(rows)).view_as(weights)
        new = with_weights(layer, matrices, corrected_bias(layer, matrices, statistics.mean))
        set_weight_format(new, form, weight_of(new))
        return new

    def _format(self, weights: Tensor, statistics: LayerStatistics) -> UniformFormat:
        variance = statistics.covariance.diagonal(dim1=-2, dim2=-1)
        variance = variance + 0.01 * variance.mean(-1, keepdim=True) + 1e-12  # (groups, features)
        importance = variance[:, None, :].expand_as(weights).flatten(0, 1)
        return best_uniform_format(weights.flatten(0, 1), importance, self.bits, self.scheme == "symmetric")
