"""A gather: the channels of what it sees, in another order."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ChannelOrder(nn.Module):
    """Output channel `i` is input channel `order[i]`.

    Attributes:
        order: a permutation of `0 .. channels - 1`. Plain numbers, so that a file describes it without tensors.
        axis: where the channels lie: 1 of images and signals, -1 of what linear layers see.
    """

    def __init__(self, order: Sequence[int], axis: int) -> None:
        super().__init__()
        if sorted(order) != list(range(len(order))):
            raise ValueError(f"an order of {len(order)} channels names each of them once")
        if axis not in (1, -1):
            raise ValueError(f"channels lie on axis 1 or -1, not {axis}")
        self.order = tuple(order)
        self.axis = axis

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the channels of `inputs` `(n, ...)` in order."""
        return inputs.index_select(self.axis, torch.tensor(self.order, device=inputs.device))


def inverted(order: Tensor) -> Tensor:
    """Returns the order that undoes `order` `(channels,)`."""
    return order.argsort()
