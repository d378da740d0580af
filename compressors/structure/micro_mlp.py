"""Replaces a layer by one of fewer channels, a ReLU, and a 1x1 mix of what is left."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from plywise.compressors.modules.composition import Chain
from plywise.compressors.modules.layers import CONVOLUTIONS, bias_of, weight_matrices, weight_of
from plywise.compressors.modules.outline import filled
from plywise.compressors.modules.rectifier import Rectifier, rectified
from plywise.compressors.recipes.hyperparameter import choice
from plywise.compressors.recipes.technique import Stage, Technique
from plywise.compressors.statistics.channels import rebuilt
from plywise.compressors.statistics.error_feedback import damped
from plywise.compressors.statistics.statistics import LayerStatistics
from plywise.compressors.structure.low_rank import HIGHEST, LowRank

AWAY = 2.0
"""Deviations by which the mean before the ReLU lies above zero: it cuts 2.3 % of what is normal, and costs 0.5 %."""


@dataclass(frozen=True)
class MicroMlp(Technique):
    """The layer's own kernel to fewer channels, a ReLU, and a 1x1 kernel.

    The first kernel `K` takes the leading directions of the output's covariance `W C W^T`, as `low_rank(sides=output)`
    does; its bias puts each mean `AWAY` deviations above zero. The mix is the least-squares fit to what the ReLU
    leaves of normal variables: `M = W C K^T G S^-1`, with `G` the shares that are not cut (Stein's lemma) and `S` the
    covariance behind the ReLU. On directions that do not correlate `M` is the linear mix times a number, and of the
    variance that the directions hold a share `G^2 / v` is explained, `v` the variance of a unit normal behind the ReLU.

    A ReLU that cuts can only lose against the linear chain before it is trained; it is here as a structure to
    fine-tune. Departure from the sources: one hidden layer, no ReLU behind the last kernel (the network has its own).
    """

    name: ClassVar[str] = "micro_mlp"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    summary: ClassVar[str] = "low_rank(sides=output) with a ReLU between: loses a little more than that; fine-tune"
    source: ClassVar[str] = (
        "Lin et al., Network in Network, 2014, section 3.1 (block); Liu et al., AdaDeep, 2018, table 1 (as "
        "compression); Stein, Estimation of the Mean of a Multivariate Normal Distribution, 1981, lemma 2 (closed form)"
    )

    ratio: float = choice(0.5, grid=(0.6, 0.4, 0.25), low=0.01, high=HIGHEST, help="share of the macs that remains")

    @property
    def _linear(self) -> LowRank:
        return LowRank(self.ratio, "output")

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses what is neither a convolution nor linear, grouped convolutions, and fewer than 2 hidden channels."""
        if not isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
            return f"{type(layer).__name__} is neither a convolution nor linear"
        return self._linear.unsupported(layer)

    def on_cut(self, whole: nn.Module, cut: nn.Module) -> "MicroMlp":
        """Keeps the hidden channels of the whole layer, as far as they still save macs."""
        return replace(self, ratio=self._linear.on_cut(whole, cut).ratio)

    def outline(self, layer: nn.Module) -> nn.Sequential:
        """Returns the thinner layer, a ReLU and a 1x1 kernel."""
        first, last = self._linear.outline(layer)
        hidden = len(weight_of(first))
        first = rebuilt(first, weight_of(first), torch.empty(hidden, device="meta"))
        return Chain(first, Rectifier(hidden), last).train(layer.training)

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns an `nn.Sequential` of the thinner layer, a ReLU and a 1x1 kernel."""
        first, _ = self._linear.compress(layer, statistics).children()
        kernel = weight_matrices(first)[0].double()
        matrix, covariance = weight_matrices(layer)[0].double(), damped(statistics.covariance)[0]
        mean, hidden = statistics.mean[0].double(), kernel @ covariance @ kernel.T
        above = AWAY * hidden.diagonal().sqrt()
        seen, middle, kept = rectified(hidden, above)
        mix = torch.linalg.solve(damped(seen[None], 1e-6)[0], kept[:, None] * (kernel @ covariance @ matrix.T)).T
        shift, own = matrix @ mean - mix @ middle, bias_of(layer)
        chain = filled(self.outline(layer), [kernel, mix], shift if own is None else own.double() + shift)
        like = chain[0].get_parameter("weight")
        chain[0].bias = nn.Parameter((above - kernel @ mean).to(like.dtype), requires_grad=False)
        return chain
