"""Mean and covariance of rows that come in batches."""

import torch
from torch import Tensor

from plywise.compressors.statistics.feature_blocks import WIDE

BLOCK = 1024
"""Features of a block then."""


class RowMoments:
    """Sums over unfolded inputs, from which their moments follow, however they came in.

    Of more features than `WIDE` the covariance is block-diagonal: to know it whole would take longer than all else, and
    more rows than there are to tell it from noise.

    Source: Chan, Golub, LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.

    Attributes:
        count: rows so far.
        mean: `(groups, features)`.
        scatter: `(groups, features, features)` summed products of what rows differ by from their mean.
    """

    def __init__(self, channel: int = 1) -> None:
        """Starts empty; `channel` features of a channel stay in one block."""
        self.count, self.mean, self.scatter = 0, torch.zeros(()), torch.zeros(())
        self._block = max(1, BLOCK // channel) * channel

    def add(self, rows: Tensor) -> None:
        """Takes in rows `(rows, groups, features)`."""
        mean, count, whole = rows.mean(0), len(rows), self.count + len(rows)
        centred = (rows - mean).transpose(0, 1)  # (groups, rows, features)
        apart = mean - self.mean  # (groups, features)
        features, weight = rows.shape[2], self.count * count / whole
        if features > WIDE:
            if not self.count:
                self.scatter = rows.new_zeros(rows.shape[1], features, features)
            for start in range(0, features, self._block):
                near = slice(start, start + self._block)
                block, some, moved = self.scatter[:, near, near], centred[:, :, near], apart[:, near]
                block.baddbmm_(some.transpose(1, 2), some)
                if self.count:
                    block.baddbmm_(moved[:, :, None], moved[:, None], alpha=weight)
        else:
            self.scatter = self.scatter + centred.transpose(1, 2) @ centred
            if self.count:
                self.scatter.baddbmm_(apart[:, :, None], apart[:, None], alpha=weight)
        self.mean = self.mean + apart * (count / whole)
        self.count = whole

    @property
    def covariance(self) -> Tensor:
        """`(groups, features, features)`."""
        return self.scatter / self.count
