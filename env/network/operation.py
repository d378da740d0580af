"""What the runtime executes for one layer, reduced to the numbers that decide its cost."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from plywise.compressors.errors import ConfigurationError, UnsupportedLayerError
from plywise.compressors.modules.branches import Branches
from plywise.compressors.modules.channel_order import ChannelOrder
from plywise.compressors.modules.layers import CONVOLUTIONS, TRANSPOSED, WEIGHTED, groups_of, is_recurrent
from plywise.compressors.modules.rectifier import Rectifier
from plywise.compressors.modules.static_quantized import StaticQuantized

Shape = tuple[int, ...]

GATHERS = {-1: "features", 1: "channels"}
"""Kinds of operations that put what lies along an axis in another order."""

WEIGHTLESS = (*GATHERS.values(), "relu")
"""Kinds of operations that have no weights and change no shape."""


@dataclass(frozen=True)
class Operation:
    """One runnable leaf at batch 1. Hashable; `dataclasses.asdict` of it is plain JSON.

    Attributes:
        kind: `conv` or `transposed` and `1d`, `2d` or `3d`; `linear` or `embedding`; or a gather of `channels` (axis 1)
            or of `features` (the last axis), or a `relu`, which have no weights.
        in_channels, out_channels: channels, or features of a linear layer; width and rows of an embedding's table.
        input_shape: what it sees without the batch: `(c, ...)`; for a linear layer `(..., features)`; for an embedding
            the shape of the indices.
        kernel, stride, dilation: one entry for each spatial axis; empty without a kernel.
        padding: ONNX order: the begins of all axes, then the ends; of a transposed convolution the ends less the
            output padding.
        groups: groups within which channels mix.
        bias: whether it adds a bias.
        integer: whether it runs on 8-bit integers.
        alongside: where it reads what the operation before it reads, the channels that are already made of that; its
            own are put behind them. 0 where it reads what the operation before it makes.
    """

    kind: str
    in_channels: int
    out_channels: int
    input_shape: Shape
    kernel: Shape = ()
    stride: Shape = ()
    padding: Shape = ()
    dilation: Shape = ()
    groups: int = 1
    bias: bool = True
    integer: bool = False
    alongside: int = 0

    @property
    def output_shape(self) -> Shape:
        """Shape of the result without the batch, with the channels alongside its own."""
        if self.kind in WEIGHTLESS:
            return self.input_shape
        if self.kind == "linear":
            return (*self.input_shape[:-1], self.out_channels)
        if self.kind == "embedding":
            return (*self.input_shape, self.in_channels)
        axes = len(self.kernel)
        borders = map(sum, zip(self.padding[:axes], self.padding[axes:], strict=True))
        each = zip(self.input_shape[1:], borders, self.dilation, self.kernel, self.stride, strict=True)
        if self.transposed:
            sizes = tuple(
                (size - 1) * stride + gap * (kernel - 1) + 1 - border for size, border, gap, kernel, stride in each
            )
        else:
            sizes = tuple(
                (size + border - gap * (kernel - 1) - 1) // stride + 1 for size, border, gap, kernel, stride in each
            )
        return (self.alongside + self.out_channels, *sizes)

    @property
    def weight_shape(self) -> Shape:
        """Shape of the weight as `layers.weight_of` gives it: `(out, in / groups, ...)`; of no numbers without one."""
        if self.kind in WEIGHTLESS:
            return (0, 0)
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def macs(self) -> int:
        """Multiply-adds at batch 1."""
        if self.kind == "embedding":
            return 0
        if self.transposed:  # every input element meets each weight that reads its channel
            return math.prod(self.input_shape) * (self.out_channels // self.groups) * math.prod(self.kernel)
        # Every output element takes one multiply-add for each weight of its channel.
        return math.prod(dataclasses.replace(self, alongside=0).output_shape) * math.prod(self.weight_shape[1:])

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return self.kind.startswith("transposed")

    @property
    def depthwise(self) -> bool:
        """Whether every input channel is a group of its own."""
        return self.groups == self.in_channels > 1

    def resized(self, in_channels: int | None = None, out_channels: int | None = None) -> "Operation":
        """Returns the same layer with other channel counts; the groups of a depthwise one follow its input.

        Raises:
            ConfigurationError: where the counts do not divide by the groups.
        """
        inputs = self.in_channels if in_channels is None else in_channels
        groups, outputs = self.groups, self.out_channels if out_channels is None else out_channels
        if self.depthwise:
            groups = inputs
            outputs = inputs * (self.out_channels // self.in_channels) if out_channels is None else outputs
        if min(inputs, outputs) < 1 or inputs % groups or outputs % groups:
            raise ConfigurationError(
                f"{self.kind} with {groups} groups cannot have {inputs} inputs and {outputs} outputs; "
                "both must be positive multiples of the groups"
            )
        shape = (*self.input_shape[:-1], inputs) if self.kind == "linear" else (inputs, *self.input_shape[1:])
        shape = self.input_shape if self.kind == "embedding" else shape
        return dataclasses.replace(self, in_channels=inputs, out_channels=outputs, groups=groups, input_shape=shape)


def operations(module: nn.Module, input_shape: Sequence[int], integer: bool = False) -> tuple[Operation, ...]:
    """Returns what the runtime executes for a layer, in order.

    Args:
        module: a layer of a type that techniques compress, an `nn.Sequential` or `Branches` of them, or a
            `StaticQuantized`.
        input_shape: what the module sees, without the batch.
        integer: whether the layer (each leaf of a chain) runs on 8-bit integers; a leaf in `StaticQuantized` does.

    Raises:
        UnsupportedLayerError: where the module holds anything else.
    """
    if isinstance(module, StaticQuantized):
        # A chain inside has no ranges between its leaves, without which the runtime computes on floats.
        return operations(module.layer, input_shape, integer=not isinstance(module.layer, nn.Sequential))
    if isinstance(module, nn.Identity):
        return ()
    if isinstance(module, ChannelOrder):
        channels = len(module.order)
        return (Operation(GATHERS[module.axis], channels, channels, tuple(input_shape), bias=False),)
    if isinstance(module, Rectifier):
        return (Operation("relu", module.channels, module.channels, tuple(input_shape), bias=False),)
    if isinstance(module, Branches):
        side: list[Operation] = []
        for branch in module:
            (operation,) = operations(branch, input_shape, integer)
            side.append(dataclasses.replace(operation, alongside=sum(each.out_channels for each in side)))
        return tuple(side)
    if isinstance(module, nn.Sequential):
        chain: tuple[Operation, ...] = ()
        for part in module:
            chain += operations(part, chain[-1].output_shape if chain else input_shape, integer)
        return chain
    return (_leaf(module, tuple(input_shape), integer),)


def _leaf(module: nn.Module, shape: Shape, integer: bool) -> Operation:
    if isinstance(module, nn.Linear):
        return Operation(
            "linear",
            module.in_features,
            module.out_features,
            shape,
            groups=groups_of(module),
            bias=module.bias is not None or is_recurrent(module),  # kernels for recurrences add one in any case
            integer=integer,
        )
    if isinstance(module, nn.Embedding):
        return Operation("embedding", module.embedding_dim, module.num_embeddings, shape, bias=False)
    if isinstance(module, CONVOLUTIONS + TRANSPOSED):
        return Operation(
            kind=f"{'transposed' if isinstance(module, TRANSPOSED) else 'conv'}{len(module.kernel_size)}d",
            in_channels=module.in_channels,
            out_channels=module.out_channels,
            input_shape=shape,
            kernel=tuple(module.kernel_size),
            stride=tuple(module.stride),
            padding=_pads(module),
            dilation=tuple(module.dilation),
            groups=module.groups,
            bias=module.bias is not None,
            integer=integer,
        )
    raise UnsupportedLayerError(
        f"{type(module).__name__} has no price: {', '.join(kind.__name__ for kind in WEIGHTED)}, Sequential, "
        "Branches and StaticQuantized of them have"
    )


def _pads(
    module: nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d,
) -> Shape:
    if module.padding == "valid":
        return (0,) * (2 * len(module.kernel_size))
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return (*(total // 2 for total in totals), *(total - total // 2 for total in totals))
    before = tuple(int(size) for size in module.padding)
    if not isinstance(module, TRANSPOSED):
        return before * 2
    return (*before, *(size - extra for size, extra in zip(before, module.output_padding, strict=True)))
