"""Replaces a layer by a chain of two or three thinner ones."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from plywise.compressors.modules.composition import Chain, composed, plane
from plywise.compressors.modules.layers import (
    CONVOLUTIONS,
    bias_of,
    groups_of,
    weight_matrices,
    weight_of,
)
from plywise.compressors.modules.outline import filled, outline_leaf, strided
from plywise.compressors.recipes.hyperparameter import choice
from plywise.compressors.recipes.technique import Stage, Technique
from plywise.compressors.statistics.error_feedback import damped
from plywise.compressors.statistics.statistics import LayerStatistics
from plywise.compressors.structure.canonical_polyadic import polyadic, polyadic_start
from plywise.compressors.structure.chain_fit import fitted
from plywise.compressors.structure.factored_table import factored_outline, factored_table

STEP = 4
"""Ranks are multiples of this where they are larger than it twice over."""

HIGHEST = 0.95
"""Share of the macs above which a chain saves nothing."""


@dataclass(frozen=True)
class LowRank(Technique):
    """Activation-aware decompositions: SVD of linear layers and 1x1 convolutions, five kinds for larger kernels.

    `spatial` is a k x 1 kernel before a 1 x k one (AdaDeep's 1-D decomposition), `input` a 1x1 kernel before the
    layer's own, `output` one behind it (a micro-MLP without ReLU), `both` one on each side (Tucker-2), `cp` one on
    each side of a filter for each channel. A kernel with one axis only has no `spatial` decomposition and takes `input`
    instead.

    Each kind starts in closed form: the output side projects on the leading directions of the *output's* covariance
    `W C W^T`, which is the SVD weighted by the input's second moment (no inverse is needed); the input side is
    whitened by the covariance of the channels. Then all factors are fitted together by least squares on the data.

    At half of the macs of ResNet-20's layers, `spatial` leaves 0.5 of the error variance of `input` and a fifth of
    that of `output` and `both`, so it is the default. `cp` leaves 0.5 to 0.9 of that of `spatial` in one more launch,
    but 1.3 where the layer has a stride, before which its first leaf runs at every position.
    """

    name: ClassVar[str] = "low_rank"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    summary: ClassVar[str] = "a chain of thin layers: fewer macs and bytes, more launches"
    source: ClassVar[str] = (
        "Zhang et al., Accelerating Very Deep Networks, 2016, section 3.1 (output); Kim et al., Compression of Deep "
        "CNNs for Fast and Low Power Mobile Applications, 2016, section 3 (both); Jaderberg et al., Speeding up CNNs "
        "with Low Rank Expansions, 2014, section 2.2 (spatial); Lebedev et al., Speeding-up CNNs Using Fine-tuned "
        "CP-Decomposition, 2015, section 3 (cp)"
    )

    ratio: float = choice(0.5, grid=(0.6, 0.4, 0.25), low=0.01, high=HIGHEST, help="share of the macs that remains")
    sides: str = choice(
        "spatial",
        grid=("spatial", "input", "output", "both", "cp"),
        help="how a kernel is split: k x 1 and 1 x k (of three axes the first apart), by 1x1, or by 1x1 and filters",
    )

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses grouped convolutions and ranks below 2."""
        if not isinstance(layer, (*CONVOLUTIONS, nn.Linear, nn.Embedding)):
            return f"{type(layer).__name__} has no factors of its own kind"
        if groups_of(layer) > 1:
            return "a grouped convolution is already small; its groups do not factor together"
        if self.sides == "cp" and self._split(layer) == "pointwise":
            return "a layer without positions in its kernel has no filters; leave sides out"
        if min(self.ranks(layer)) < 2:
            return f"rank {self.ranks(layer)} at {self.ratio:g} of the macs is too low to be of use"
        return None

    def ranks(self, layer: nn.Module) -> tuple[int, ...]:
        """Returns the channels between the leaves: one number, or two for `both` sides.

        They are counted without borders: a layer without padding runs its first leaf on a few positions more.
        """
        outputs, inputs, *kernel = weight_of(layer).shape
        budget = self.ratio * inputs * outputs * math.prod(kernel)
        if self._split(layer) != "both":
            rank = snapped(budget / self._macs(layer, 1))
            return (rank, rank) if self.sides == "cp" else (rank,)
        # in*(b*in)*density + (b*in)*(b*out)*positions + (b*out)*out = budget, solved for b, the share of both sides.
        square, linear = inputs * outputs * math.prod(kernel), inputs * inputs * _density(layer) + outputs * outputs
        share = (-linear + (linear**2 + 4 * square * budget) ** 0.5) / (2 * square)
        return snapped(share * inputs), snapped(share * outputs)

    def on_cut(self, whole: nn.Module, cut: nn.Module) -> "LowRank":
        """Keeps the ranks of the whole layer, as far as they still save macs.

        Of the channels that are left, the same directions matter: with the same share of fewer macs, a layer with a
        quarter of its macs that lost half of its channels as well would keep three directions of eight.
        """
        if weight_of(cut).shape == weight_of(whole).shape:
            return self
        return replace(self, ratio=ratio_of(self._macs(cut, *self.ranks(whole)), cut))

    def _macs(self, layer: nn.Module, rank: int, last: int = 1) -> float:
        """Returns the macs of the chain for each position of the output; `last` is the second rank of `both`."""
        outputs, inputs, *kernel = weight_of(layer).shape
        positions, density = math.prod(kernel), _density(layer)
        split = self._split(layer)
        if split == "pointwise":
            return rank * (inputs + outputs)
        if split == "input":
            return rank * (inputs * density + outputs * positions)
        if split == "output":
            return rank * (inputs * positions + outputs)
        if split == "spatial":
            return rank * (inputs * kernel[0] * math.prod(_stride(layer)[1:]) + outputs * math.prod(kernel[1:]))
        if split == "cp":
            return rank * (inputs * density + outputs + positions)
        return inputs * rank * density + rank * last * positions + last * outputs

    def outline(self, layer: nn.Module) -> nn.Sequential:
        """Returns two or three thinner layers."""
        if isinstance(layer, nn.Embedding):
            return factored_outline(layer, *self.ranks(layer))
        outputs, inputs, *kernel = weight_of(layer).shape
        ones, split = [1] * len(kernel), self._split(layer)
        kernels = {"pointwise": (ones, ones), "input": (ones, kernel), "output": (kernel, ones)}.get(
            split, (ones, kernel, ones)
        )
        if split == "spatial":
            kernels = ([kernel[0], *ones[1:]], [1, *kernel[1:]])
        channels = [inputs, *self.ranks(layer), outputs]
        chain = Chain().train(layer.training)
        for place, settings in enumerate(strided(layer, kernels)):
            before, after = channels[place : place + 2]
            groups = before if split == "cp" and place == 1 else 1
            shape, last = (after, before // groups, *kernels[place]), place == len(kernels) - 1
            chain.append(outline_leaf(layer, shape, bias=last, **settings, **({"groups": groups} if settings else {})))
        return chain

    def _split(self, layer: nn.Module) -> str:
        """Returns which of `sides` a layer takes; `pointwise` where there is nothing to choose."""
        kernel = weight_of(layer).shape[2:]
        if math.prod(kernel) == 1:
            return "pointwise"
        return "input" if self.sides == "spatial" and min(plane(kernel)) < 2 else self.sides

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns an `nn.Sequential` of two or three thinner layers."""
        if isinstance(layer, nn.Embedding):
            return factored_table(layer, statistics, *self.ranks(layer))
        outputs, inputs, *kernel = weight_of(layer).shape
        matrix, covariance = weight_matrices(layer)[0].double(), damped(statistics.covariance)[0]
        # In units of the largest weight, so that tiny and huge weights do not leave float32; the last leaf takes it.
        unit = matrix.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        target, split, ranks = matrix / unit, self._split(layer), self.ranks(layer)
        compose = polyadic if split == "cp" else composed
        if split == "pointwise":
            kernels = _factors(target, covariance, *ranks)
        else:
            starts: dict[str, Callable[..., list[Tensor]]]
            starts = {"input": input_start, "output": _output, "spatial": _spatial, "both": _both, "cp": _polyadic}
            whole = target.view(outputs, inputs, *plane(kernel))
            kernels = fitted(starts[split](whole, covariance, *ranks), target, covariance, compose)
        shift = (target - compose([part.double() for part in kernels]).flatten(1)) @ statistics.mean[0].double() * unit
        kept = bias_of(layer)
        bias = (shift if kept is None else kept.double() + shift).float()
        kernels[-1] = kernels[-1].double() * unit
        return filled(self.outline(layer), kernels, bias)


def _stride(layer: nn.Module) -> tuple[int, ...]:
    stride: tuple[int, ...] = getattr(layer, "stride", ())
    return stride


def _density(layer: nn.Module) -> int:
    """Positions of the input for each of the output: what runs before a stride runs at more of them."""
    return math.prod(_stride(layer))


def ratio_of(macs: float, layer: nn.Module) -> float:
    """Returns the ratio that leaves so many macs for each position, as far as it saves any."""
    return min(HIGHEST, macs / weight_of(layer).numel() * (1.0 + 1e-9))  # above what `snapped` would round down


def snapped(rank: float) -> int:
    """Returns a number of channels between leaves, at least 1, as the device wants it and no larger than `rank`."""
    return int(rank) // STEP * STEP if rank >= 2 * STEP else max(1, int(rank))


def _leading(matrix: Tensor, count: int) -> Tensor:
    """Returns the `count` leading eigenvectors of a symmetric matrix as columns, signs fixed."""
    vectors: Tensor = torch.linalg.eigh(matrix.double()).eigenvectors.flip(1)[:, :count]
    peak = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(peak < 0, -1.0, 1.0)


def _factors(target: Tensor, covariance: Tensor, rank: int) -> list[Tensor]:
    basis = _leading(target @ covariance @ target.T, rank)
    return [(basis.T @ target)[..., None, None], basis[..., None, None]]


def _output(whole: Tensor, covariance: Tensor, rank: int) -> list[Tensor]:
    inner, basis = _factors(whole.flatten(1), covariance, rank)
    return [inner.view(rank, *whole.shape[1:]), basis]


def _spatial(whole: Tensor, covariance: Tensor, rank: int) -> list[Tensor]:
    """Starts from the SVD of the kernel as `(out * width, in * height)`, by the data of one column of the patch."""
    outputs, inputs, height, width = whole.shape
    matrix = whole.permute(0, 3, 1, 2).reshape(outputs * width, inputs * height)
    columns = covariance.view(inputs, height, width, inputs, height, width).diagonal(dim1=2, dim2=5).mean(-1)
    down, across = _factors(matrix, columns.reshape(inputs * height, inputs * height), rank)
    return [
        down.view(rank, inputs, height, 1),
        across.view(outputs, width, rank).transpose(1, 2).reshape(outputs, rank, 1, width),
    ]


def input_start(whole: Tensor, covariance: Tensor, rank: int) -> list[Tensor]:
    """Returns the input directions that matter to a layer and the least-squares kernel that reads them.

    Args:
        whole: `(out, in, height, width)` weights of the layer, float64.
        covariance: `(features, features)` of its inputs, positive definite, float64.
        rank: how many directions.

    Returns:
        `(rank, in, 1, 1)` and `(out, rank, height, width)`.
    """
    outputs, inputs, height, width = whole.shape
    target, positions = whole.flatten(1), height * width
    project = _input_directions(target, covariance, inputs, rank)
    # Core: least squares of the layer's output on the projected patch.
    wide = torch.kron(project.contiguous(), torch.eye(positions, dtype=torch.float64))
    core = torch.linalg.solve(wide @ covariance @ wide.T, wide @ covariance @ target.T).T  # (out, rank * positions)
    return [project[..., None, None], core.view(outputs, rank, height, width)]


def _both(whole: Tensor, covariance: Tensor, rank_in: int, rank_out: int) -> list[Tensor]:
    project, core = input_start(whole, covariance, rank_in)
    # Output side: the leading directions of the core's outputs.
    approximation = composed([project, core]).flatten(1)
    basis = _leading(approximation @ covariance @ approximation.T, rank_out)
    inner = torch.einsum("op,oihw->pihw", basis, core)
    return [project, inner, basis[..., None, None]]


def _polyadic(whole: Tensor, covariance: Tensor, rank: int, _: int) -> list[Tensor]:
    return polyadic_start(whole, covariance, rank)


def _input_directions(matrix: Tensor, covariance: Tensor, inputs: int, rank: int) -> Tensor:
    """Returns `(rank, in)`: the directions of the input channels that matter to the layer, whitened by the data."""
    positions = matrix.shape[1] // inputs
    channel = covariance.view(inputs, positions, inputs, positions).diagonal(dim1=1, dim2=3).mean(-1)
    values, vectors = torch.linalg.eigh(channel)
    root = vectors * values.clamp(min=1e-12).sqrt() @ vectors.T
    by_channel = matrix.view(-1, inputs, positions).permute(1, 0, 2).flatten(1)  # (in, out * positions)
    directions = _leading(root @ (by_channel @ by_channel.T) @ root, rank)
    project: Tensor = directions.T @ torch.linalg.inv(root)
    return project
