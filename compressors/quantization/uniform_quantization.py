"""Weights on a uniform grid of a few bits."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor
from torch.nn import functional

from plywise.compressors.formats.grouped_format import GroupedFormat
from plywise.compressors.formats.scale_search import best_uniform_format
from plywise.compressors.formats.weight_format import WeightFormat
from plywise.compressors.quantization.weight_quantizer import WeightQuantizer
from plywise.compressors.recipes.hyperparameter import choice


@dataclass(frozen=True)
class UniformQuantization(WeightQuantizer):
    """Rounds weights to a uniform grid, one scale per output channel found by least squared error.

    `rounding="gptq"` lets the weights still to come repair the error of those already rounded; `"adaptive"` then
    moves single weights for as long as the error falls. Zeros stay zeros.
    """

    name: ClassVar[str] = "uniform_quantization"
    summary: ClassVar[str] = "weights of 8 to 2 bits: smaller files; faster only together with int8 activations"
    source: ClassVar[str] = (
        "Krishnamoorthi, Quantizing Deep Convolutional Networks, 2018, section 2 (grids); "
        "Frantar et al., GPTQ, 2023, section 3 (gptq); Nagel et al., AdaRound, 2020, section 3 (adaptive: the "
        "objective, met by coordinate descent)"
    )

    bits: int = choice(
        8,
        grid=(8, 7, 6, 4, 3, 2),
        low=2,
        high=8,
        help="bits of a weight",
        outside="of two values, one would be zero and all weights of the other's opposite sign lost: take 'binary'",
    )
    scheme: str = choice("symmetric", grid=("symmetric", "affine"), help="whether zero sits in the middle")
    rounding: str = choice(
        "gptq",
        grid=("nearest", "gptq", "adaptive"),
        help="each weight alone, with error feedback, or refined after that",
    )
    granularity: str = choice("channel", grid=("channel", "tensor", "group"), help="what shares a scale")
    group_size: int = choice(32, grid=(32,), low=1, help="features that share a scale where granularity is group")
    scale: str = choice(
        "mse", grid=("mse", "minmax", "percentile"), help="range of least error, of all weights, of all but 1 %"
    )

    @classmethod
    def grid(cls) -> Iterator[Self]:
        """Yields bits, schemes and the first two roundings combined, and the other choices one by one.

        All combined would be 324.
        """
        for bits in (8, 7, 6, 4, 3, 2):
            for scheme in ("symmetric", "affine"):
                yield from (cls(bits=bits, scheme=scheme, rounding=rounding) for rounding in ("nearest", "gptq"))
        usual = cls(bits=4)
        yield from (replace(usual, scale=scale) for scale in ("minmax", "percentile"))
        yield from (replace(usual, granularity=granularity) for granularity in ("tensor", "group"))
        yield replace(usual, rounding="adaptive")

    def format_of(self, weight: Tensor, importance: Tensor) -> WeightFormat:
        """Returns the format that loses least."""
        weights = weight.float().flatten(1)
        if self.granularity == "tensor":
            weights, importance = weights.reshape(1, -1), importance.reshape(1, -1)
        elif self.granularity == "group":
            # Zeros of no importance fill the last group up.
            padding = (0, -weights.shape[1] % self.group_size)
            weights, importance = (
                functional.pad(values, padding).reshape(-1, self.group_size) for values in (weights, importance)
            )
        fmt = best_uniform_format(weights, importance, self.bits, self.scheme == "symmetric", self.scale)
        if self.granularity == "group":
            out = weight.shape[0]
            return GroupedFormat(self.bits, fmt.scale.view(out, -1), fmt.zero_point.view(out, -1), self.group_size)
        return fmt
