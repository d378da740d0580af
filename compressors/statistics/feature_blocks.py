"""Matrices over many features that fall into blocks: products, roots and solutions, block by block.

Of many features calibration knows only what near ones have in common, so all else in a covariance is zero, and so it is
in what follows from one. Source: Golub and Van Loan, Matrix Computations, 2013, section 1.3 (block matrices).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

WIDE = 2048
"""Features above which it is looked whether a matrix falls into blocks; of fewer it is taken as a whole."""


@dataclass(frozen=True)
class FeatureBlocks:
    """Where the blocks of block-diagonal matrices `(..., features, features)` lie: runs of features, in order."""

    runs: tuple[slice, ...]

    @classmethod
    def of(cls, matrix: Tensor) -> "FeatureBlocks":
        """Finds the smallest blocks of a symmetric matrix `(..., features, features)`; one where features are few."""
        features = matrix.shape[-1]
        if features <= WIDE:
            return cls((slice(0, features),))
        filled = (matrix != 0).reshape(-1, features, features).any(0)
        filled.fill_diagonal_(True)
        last = features - 1 - filled.flip(1).to(torch.uint8).argmax(1)  # of what each feature goes with
        ends = (last.cummax(0).values == torch.arange(features)).nonzero().flatten() + 1
        return cls(tuple(slice(start, stop) for start, stop in zip([0, *ends.tolist()], ends.tolist(), strict=False)))

    def times(self, left: Tensor, matrix: Tensor) -> Tensor:
        """Returns `left @ matrix` of `(..., rows, features)` and such a matrix; differentiable."""
        if len(self.runs) == 1:
            return left @ matrix
        return torch.cat([left[..., run] @ matrix[..., run, run] for run in self.runs], -1)

    def cholesky(self, matrix: Tensor) -> Tensor:
        """Returns the lower Cholesky factor of a positive definite one, of the same blocks."""
        return self._mapped(torch.linalg.cholesky, matrix)

    def inverse(self, matrix: Tensor) -> Tensor:
        """Returns the inverse of a positive definite one, of the same blocks."""
        return self._mapped(lambda block: torch.cholesky_inverse(torch.linalg.cholesky(block)), matrix)

    def solved(self, matrix: Tensor, right: Tensor) -> Tensor:
        """Returns what such a matrix has to be multiplied by to give `right` `(features, columns)`."""
        if len(self.runs) == 1:
            return cast(Tensor, torch.linalg.solve(matrix, right))
        return torch.cat([torch.linalg.solve(matrix[run, run], right[run]) for run in self.runs])

    def _mapped(self, function: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
        if len(self.runs) == 1:
            return function(matrix)
        result = torch.zeros_like(matrix)
        for run in self.runs:
            result[..., run, run] = function(matrix[..., run, run])
        return result
