"""A linear layer whose features mix within groups only."""

import torch
from torch import Tensor, nn


class GroupedLinear(nn.Linear):
    """Like a grouped 1x1 convolution on the last axis: one batched product of small matrices.

    Attributes:
        weight: `(out, in / groups)`.
        groups: divides inputs and outputs.
    """

    def __init__(self, in_features: int, out_features: int, groups: int, bias: bool = True) -> None:
        if in_features % groups or out_features % groups:
            raise ValueError(f"{groups} groups do not divide {in_features} inputs and {out_features} outputs")
        super().__init__(in_features // groups, out_features, bias)
        self.in_features = in_features
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        """Maps `(..., in)` to `(..., out)`."""
        rows = input.reshape(*input.shape[:-1], self.groups, 1, -1)  # (..., groups, 1, in / groups)
        weight = self.weight.view(self.groups, -1, self.weight.shape[1]).transpose(1, 2)
        outputs = torch.matmul(rows, weight).flatten(-3)
        return outputs if self.bias is None else outputs + self.bias
