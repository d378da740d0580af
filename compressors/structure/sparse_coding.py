"""Replaces a linear layer by a dictionary and sparse codes over it."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from plywise.compressors.modules.composition import Chain
from plywise.compressors.modules.layers import (
    bias_of,
    groups_of,
    is_pointwise,
    weight_matrices,
    weight_of,
)
from plywise.compressors.modules.outline import filled, outline_leaf, strided
from plywise.compressors.recipes.hyperparameter import choice
from plywise.compressors.recipes.technique import Stage, Technique
from plywise.compressors.statistics.error_feedback import damped
from plywise.compressors.statistics.statistics import LayerStatistics

ROUNDS = 8
"""Times that codes and dictionary are fitted in turn."""


@dataclass(frozen=True)
class SparseCoding(Technique):
    """Every row of weights becomes a combination of a few rows of a shared dictionary: `W = codes x dictionary`.

    Codes come from orthogonal matching pursuit, the dictionary from least squares, in turn, both in the metric of
    the layer's inputs, so that it is the output's error which falls. Departure from K-SVD: the dictionary is fitted
    at once (Engan et al., Method of Optimal Directions, 1999) instead of atom by atom.
    """

    name: ClassVar[str] = "sparse_coding"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    summary: ClassVar[str] = "a dictionary and sparse codes: smaller files; faster only as far as the atoms are few"
    source: ClassVar[str] = (
        "Aharon et al., K-SVD, 2006, section III; Bhattacharya and Lane, Sparsification and Separation of Deep "
        "Learning Layers, 2016, section 4 (of linear layers, AdaDeep's choice)"
    )

    atoms: float = choice(0.5, grid=(0.5, 0.25), low=0.01, high=1.0, help="atoms as a share of the smaller side")
    density: float = choice(0.5, grid=(0.5, 0.25), low=0.01, high=1.0, help="share of the atoms that a code uses")

    def unsupported(self, layer: nn.Module) -> str | None:
        """Refuses all but linear layers and 1x1 convolutions, and too few atoms."""
        if not is_pointwise(layer):
            return f"{type(layer).__name__} is not linear; sparse codes replace linear layers and 1x1 convolutions"
        if groups_of(layer) > 1:
            return "a grouped convolution has no rows to share a dictionary"
        atoms, used = self.counts(layer)
        outputs, inputs = weight_of(layer).shape[:2]
        if used < 1 or atoms < 2:
            return f"{atoms} atoms, {used} in a code, are too few to be of use"
        if atoms * inputs + used * outputs >= outputs * inputs:
            return f"{atoms} atoms, {used} in a code, are no smaller than the layer"
        return None

    def counts(self, layer: nn.Module) -> tuple[int, int]:
        """Returns how many atoms the dictionary has and how many a code uses."""
        atoms = int(self.atoms * min(weight_of(layer).shape[:2]))
        return atoms, int(self.density * atoms)

    def on_cut(self, whole: nn.Module, cut: nn.Module) -> "SparseCoding":
        """Keeps the atoms of the whole layer, as far as there are sides for them."""
        share = self.counts(whole)[0] / min(weight_of(cut).shape[:2])
        return replace(self, atoms=min(1.0, share * (1.0 + 1e-9)))  # above what int() would round down

    def outline(self, layer: nn.Module) -> nn.Sequential:
        """Returns the dictionary and the codes."""
        outputs, inputs, *ones = weight_of(layer).shape
        atoms = max(1, self.counts(layer)[0])
        strides, neutral = strided(layer, [ones, ones])
        dictionary = outline_leaf(layer, (atoms, inputs, *ones), **strides)
        chain = Chain(dictionary, outline_leaf(layer, (outputs, atoms, *ones), bias=True, **neutral))
        return chain.train(layer.training)

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns an `nn.Sequential`: the dictionary `(atoms, in)`, then the codes `(out, atoms)`, mostly zeros."""
        atoms, used = (max(1, count) for count in self.counts(layer))
        matrix = weight_matrices(layer)[0].double()
        root = torch.linalg.cholesky(damped(statistics.covariance)[0])
        # In units of the largest weight, so that tiny and huge weights do not leave float32; the codes take it.
        unit = matrix.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        codes, rows = _coded(matrix / unit @ root, atoms, used)
        dictionary = torch.linalg.solve_triangular(root, rows, upper=False, left=False)
        size = dictionary.abs().max().clamp(min=1e-30)
        dictionary, codes = dictionary / size, codes * size * unit
        shift = (matrix - codes @ dictionary) @ statistics.mean[0].double()
        kept = bias_of(layer)
        bias = (shift if kept is None else kept.double() + shift).float()
        return filled(self.outline(layer), [dictionary, codes], bias)


def _coded(signals: Tensor, atoms: int, used: int) -> tuple[Tensor, Tensor]:
    """Returns codes `(n, atoms)` with `used` non-zeros a row, and the dictionary `(atoms, features)`."""
    # The leading directions tell most; rows of the signals themselves make up the other half of the start.
    right = torch.linalg.svd(signals, full_matrices=False).Vh
    loud = signals.norm(dim=1).argsort(descending=True, stable=True)
    half = atoms - atoms // 2
    dictionary = _normalised(torch.cat([right[:half], signals[loud[: atoms - half]]]))
    best_error, best = float("inf"), (torch.zeros(len(signals), atoms, dtype=signals.dtype), dictionary)
    for _ in range(ROUNDS):
        codes = _pursued(signals, dictionary, used)
        moment = damped((codes.T @ codes)[None], 1e-9)[0]
        dictionary = torch.linalg.solve(moment, codes.T @ signals)
        error = float((signals - codes @ dictionary).square().sum())
        if error < best_error:
            best_error, best = error, (codes, dictionary)
        silent = dictionary.norm(dim=1) < 1e-12
        dictionary = _normalised(torch.where(silent[:, None], right[:1], dictionary))
    return best


def _pursued(signals: Tensor, dictionary: Tensor, used: int) -> Tensor:
    """Orthogonal matching pursuit of all signals at once; atoms have unit length."""
    gram, products = damped((dictionary @ dictionary.T)[None], 1e-9)[0], signals @ dictionary.T
    support = torch.zeros(len(signals), 0, dtype=torch.int64)
    codes = torch.zeros_like(products)
    for _ in range(used):
        left = (products - codes @ gram).abs().scatter(1, support, -1.0)
        support = torch.cat([support, left.argmax(1, keepdim=True)], 1)
        inner = gram[support[:, :, None], support[:, None, :]]
        values = torch.linalg.solve(inner, products.gather(1, support))
        codes = torch.zeros_like(products).scatter(1, support, values)
    return codes


def _normalised(rows: Tensor) -> Tensor:
    length = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(length > 0, length, torch.ones_like(length))
