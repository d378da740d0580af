"""Mean and covariance of rows that come in batches."""

import torch
from torch import Tensor


class RowMoments:
    """Sums over unfolded inputs, from which their moments follow, however they came in.

    Source: Chan, Golub, LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.

    Attributes:
        count: rows so far.
        mean: `(groups, features)`.
        scatter: `(groups, features, features)` summed products of what rows differ by from their mean.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self.count, self.mean, self.scatter = 0, torch.zeros(()), torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Takes in rows `(rows, groups, features)`."""
        mean, count, whole = rows.mean(0), len(rows), self.count + len(rows)
        centred = (rows - mean).transpose(0, 1)  # (groups, rows, features)
        apart = mean - self.mean  # (groups, features)
        self.scatter = self.scatter + centred.transpose(1, 2) @ centred
        if self.count:
            self.scatter.baddbmm_(apart[:, :, None], apart[:, None], alpha=self.count * count / whole)
        self.mean = self.mean + apart * (count / whole)
        self.count = whole

    @property
    def covariance(self) -> Tensor:
        """`(groups, features, features)`."""
        return self.scatter / self.count
