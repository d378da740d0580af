"""Chains of linear leaves as the one kernel that they amount to."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.compressors.modules.branches import Branches
from plywise.compressors.modules.channel_order import ChannelOrder
from plywise.compressors.modules.layers import WEIGHTED, bias_of, groups_of, native_weight, weight_of
from plywise.compressors.modules.rectifier import Rectifier
from plywise.compressors.modules.static_quantized import StaticQuantized

Extent = tuple[int, int]
"""Height and width of a window; `(k, 1)` for a convolution over signals, `(1, 1)` for a linear layer.

Of three axes the last two are taken together, `(depth, height * width)`: a chain's kernels have the whole extent along
both of them, or look at one place, in the middle where they are branches.
"""


class Chain(nn.Sequential):
    """What takes the place of one layer: parts that run one behind the other.

    A forward that asks for the layer's weights gets what the chain amounts to.
    """

    @property
    def weight(self) -> Tensor:
        """In the shape that torch gives the weight of the layer, made anew each time."""
        leaves = [[leaf for leaf in part.modules() if isinstance(leaf, WEIGHTED)] for part in self]
        shapes = [[weight_of(leaf).shape[2:] for leaf in part] for part in leaves if part]
        first = next(leaf for part in leaves for leaf in part)
        if isinstance(first, nn.Embedding):
            return whole_table(self)
        axes = range(len(shapes[0][0]))
        extent = [1 + sum(max(shape[axis] for shape in part) - 1 for part in shapes) for axis in axes]
        kernel = composed([dense_kernel(part) for part in self])
        return native_weight(first, kernel.reshape(*kernel.shape[:2], *extent).to(weight_of(first).dtype))

    @property
    def bias(self) -> Tensor | None:
        """Of the part that makes the outputs, in their order."""
        last = self[-1]
        if not isinstance(last, ChannelOrder):
            return bias_of(last)
        bias = bias_of(self[-2])
        return None if bias is None else bias[list(last.order)]


def whole_table(chain: nn.Sequential) -> Tensor:
    """Returns the `(rows, width)` float32 that an embedding and the linear layer behind it amount to."""
    table, bias = weight_of(chain[0]).float() @ weight_of(chain[1]).float().T, bias_of(chain[1])
    return table if bias is None else table + bias.float()


def dense_kernel(leaf: nn.Module) -> Tensor:
    """Returns the weights of a part of a chain as `(out, in, height, width)` float32, with zeros between its groups.

    Roundings count as if they changed nothing, and ReLUs as if they cut nothing.
    """
    if isinstance(leaf, StaticQuantized):
        return dense_kernel(leaf.layer)
    if isinstance(leaf, Branches):
        return side_by_side([dense_kernel(branch) for branch in leaf])
    if isinstance(leaf, Rectifier):
        return torch.eye(leaf.channels)[..., None, None]
    if isinstance(leaf, ChannelOrder):
        return torch.eye(len(leaf.order))[list(leaf.order)][..., None, None]
    weight = weight_of(leaf).float()
    kernel = weight.reshape(*weight.shape[:2], *plane(weight.shape[2:]))
    return ungrouped(kernel, groups_of(leaf))


def plane(kernel: Sequence[int]) -> Extent:
    """Returns the extent of a kernel's axes, of which there are up to three."""
    return (*kernel, 1)[0], math.prod(kernel[1:])


def ungrouped(kernel: Tensor, groups: int) -> Tensor:
    """Returns `(out, in / groups, height, width)` as `(out, in, height, width)`."""
    if groups == 1:
        return kernel
    outputs, inputs, *extent = kernel.shape
    blocks = torch.eye(groups, dtype=kernel.dtype).view(groups, 1, groups, 1, 1, 1)
    rows = kernel.view(groups, outputs // groups, 1, inputs, *extent)
    return (blocks * rows).reshape(outputs, groups * inputs, *extent)


def side_by_side(kernels: Sequence[Tensor]) -> Tensor:
    """Returns kernels that see the same inputs as one, those of smaller extent in the middle; differentiable in each.

    Args:
        kernels: `(out, in, height, width)` each, of odd extents or all of the same.
    """
    height, width = (max(kernel.shape[axis] for kernel in kernels) for axis in (2, 3))
    borders = [((height - kernel.shape[2]) // 2, (width - kernel.shape[3]) // 2) for kernel in kernels]
    return torch.cat([F.pad(k, (x, x, y, y)) for k, (y, x) in zip(kernels, borders, strict=True)])


def composed(kernels: Sequence[Tensor]) -> Tensor:
    """Returns the kernel of a chain, `(out, in, height, width)`; differentiable in each of its kernels.

    Args:
        kernels: `(out, in, height, width)` each, ungrouped, in the order in which they run.
    """
    whole = kernels[0].transpose(0, 1)  # (in, middle, height, width): the inputs are the batch
    for kernel in kernels[1:]:
        height, width = kernel.shape[2:]
        if (height, width) == (1, 1):
            whole = torch.einsum("imhw,om->iohw", whole, kernel[:, :, 0, 0])
        else:
            whole = F.conv2d(whole, kernel.flip(2, 3), padding=(height - 1, width - 1))
    return whole.transpose(0, 1)


def extent_of(kernels: Sequence[Tensor]) -> Extent:
    """Returns the window of the input that a chain of kernels looks at."""
    height, width = (1 + sum(kernel.shape[axis] - 1 for kernel in kernels) for axis in (2, 3))
    return height, width


def on_window(kernel: Tensor, extent: Extent) -> Tensor:
    """Returns the matrix of a kernel moving over a window: `(out * positions left, in * height * width)`."""
    channels = kernel.shape[1]
    if kernel.shape[2:] == extent:
        return kernel.flatten(1)
    features = channels * extent[0] * extent[1]
    impulses = torch.eye(features, dtype=kernel.dtype).view(features, channels, *extent)
    return F.conv2d(impulses, kernel).flatten(1).T


def windows(channels: int, extent: Extent, size: Extent) -> Tensor:
    """Returns the features that a kernel of `size` sees at each place of a window, `(places, in * size)` indices."""
    numbers = torch.arange(channels * extent[0] * extent[1]).view(1, channels, *extent)
    places = F.unfold(numbers.double(), size)[0].T  # (places, in * size)
    return places.round().long()
