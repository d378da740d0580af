"""A container whose parts read the same input; their outputs lie side by side along the channels."""

import torch
from torch import Tensor, nn

from plywise.compressors.modules.layers import bias_of


class Branches(nn.ModuleList):
    """What `nn.Sequential` is one behind the other, side by side.

    Its parts are convolutions whose outputs have the same extent. The smaller kernels among them look at the middle of
    what the largest one sees.
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__(branches)

    @property
    def bias(self) -> Tensor | None:
        """Those of the parts, in order; None where one has none."""
        found = [bias for branch in self if (bias := bias_of(branch)) is not None]
        return torch.cat(found) if len(found) == len(self) else None

    def forward(self, input: Tensor) -> Tensor:
        """Maps `(n, in, ...)` to `(n, sum of the parts' outputs, ...)`."""
        return torch.cat([branch(input) for branch in self], 1)
