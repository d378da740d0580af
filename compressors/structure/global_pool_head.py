"""Replaces a linear layer on a flattened map by the mean of each channel and a thinner linear layer."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from plywise.compressors.modules.composition import Chain
from plywise.compressors.modules.grouped_linear import GroupedLinear
from plywise.compressors.modules.layers import bias_of, weight_matrices, weight_of
from plywise.compressors.modules.outline import filled, outline_leaf
from plywise.compressors.recipes.hyperparameter import choice
from plywise.compressors.recipes.technique import Stage, Technique
from plywise.compressors.statistics.error_feedback import damped
from plywise.compressors.statistics.statistics import LayerStatistics


@dataclass(frozen=True)
class GlobalPoolHead(Technique):
    """Averages each channel of a flattened map and fits linear weights on the means by least squares.

    The mean is a grouped linear layer of weights that are all `1 / positions`: what knows linear layers knows it.
    Departure from AdaDeep, which drops all hidden linear layers and trains the new head: this one fits the outputs
    of its own layer, and the linear layers behind it stay and choose for themselves.
    """

    name: ClassVar[str] = "global_pool_head"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    summary: ClassVar[str] = "the mean of each channel before a linear layer: a share of it, where places count alike"
    source: ClassVar[str] = (
        "Lin et al., Network in Network, 2014, section 3.2; Liu et al., AdaDeep, 2018, table 1 (as compression)"
    )

    positions: int = choice(4, grid=(4, 16), low=2, high=65536, help="height times width of the map that is flattened")

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses all but linear layers whose inputs are whole channels."""
        if type(layer) is not nn.Linear:
            return f"{type(layer).__name__} is not linear; a head stands behind a flattened map"
        if layer.in_features % self.positions or layer.in_features == self.positions:
            return f"{layer.in_features} inputs are not several channels of {self.positions} positions"
        return None

    def outline(self, layer: nn.Module) -> nn.Sequential:
        """Returns the mean and a linear layer."""
        outputs, inputs = weight_of(layer).shape
        channels = inputs // math.gcd(self.positions, inputs)  # after a cut perhaps fewer positions divide the inputs
        with torch.device("meta"):
            mean = GroupedLinear(inputs, channels, channels, bias=False).to(weight_of(layer).dtype)
        return Chain(mean, outline_leaf(layer, (outputs, channels), bias=True)).train(layer.training)

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns an `nn.Sequential` of a `GroupedLinear` and a linear layer."""
        outline = self.outline(layer)
        channels, positions = weight_of(outline[0]).shape
        matrix, covariance = weight_matrices(layer)[0].double(), damped(statistics.covariance)[0]
        mean = torch.full((channels, positions), 1.0 / positions, dtype=torch.float64)
        wide: torch.Tensor = torch.block_diag(*mean[:, None])  # type: ignore[no-untyped-call]  # (channels, in)
        mix = torch.linalg.solve(wide @ covariance @ wide.T, wide @ covariance @ matrix.T).T
        shift, kept = (matrix - mix @ wide) @ statistics.mean[0].double(), bias_of(layer)
        bias = (shift if kept is None else kept.double() + shift).float()
        return filled(outline, [mean, mix], bias)
