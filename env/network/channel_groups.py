"""Channels that must be removed together, and networks without some of them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plywise.compressors.modules.layers import groups_of, out_channels, weight_of

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Side:
    """Which channels of one side of a module belong to a group.

    Attributes:
        module: dotted name.
        local: `(n,)` channel indices of that side of the module.
        root: `(n,)` the group's channel that each belongs to.
    """

    module: str
    local: Tensor
    root: Tensor


@dataclass(frozen=True)
class TensorSide(Side):
    """Which entries of a bare parameter or buffer, along one axis, belong to a group.

    Attributes:
        name: of the tensor in its module.
        axis: that `local` counts along.
    """

    name: str
    axis: int


@dataclass(frozen=True)
class Count:
    """An attribute of a module that counts channels, such as the number of heads, and shrinks along with them.

    Attributes:
        module: dotted name.
        attribute: a whole number, or several of which the last one counts.
        root: `(n,)` the group's channel that each of what is counted belongs to.
    """

    module: str
    attribute: str
    root: Tensor


@dataclass(frozen=True)
class ChannelGroup:
    """Output channels that several modules share.

    Attributes:
        leader: the layer that runs first and decides.
        channels: how many there are; what only goes together, such as a whole attention head, counts as one.
        producers: output sides: of layers, the leader first, depthwise convolutions and BatchNorms.
        consumers: input sides of layers that read them.
        tensors: of other norms, and bare parameters between layers.
        counts: attributes of modules that follow.
    """

    leader: str
    channels: int
    producers: tuple[Side, ...]
    consumers: tuple[Side, ...]
    tensors: tuple[TensorSide, ...] = ()
    counts: tuple[Count, ...] = ()

    @property
    def root(self) -> Tensor:
        """`(out,)` the channel that each output of the leader belongs to."""
        return self.producers[0].root

    @property
    def unit(self) -> int:
        """Outputs of the leader that make up one channel: the width of a head, for one."""
        return len(self.root) // self.channels


def cut(
    modules: Mapping[str, nn.Module],
    groups: Sequence[ChannelGroup],
    keep: Mapping[int, Tensor],
    names: Sequence[str] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns for each module which input and which output channels stay.

    Args:
        modules: the network's modules by name.
        groups: all groups.
        keep: for some groups (by index) the sorted channel indices that stay.
        names: modules of interest; None for all.

    Returns:
        Two dicts of name to sorted index tensors: inputs and outputs; modules that lose nothing are absent.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for index, kept in keep.items():
        group = groups[index]
        stays = torch.zeros(group.channels, dtype=torch.bool)
        stays[kept] = True
        for sides, found, is_input in ((group.consumers, inputs, True), (group.producers, outputs, False)):
            for side in sides:
                if names is None or side.module in names:
                    size = channels_in(modules[side.module]) if is_input else channels_out(modules[side.module])
                    mask = found.setdefault(side.module, torch.ones(size, dtype=torch.bool))
                    mask[side.local] = stays[side.root]
    return _indices(inputs), _indices(outputs)


def trimmed(
    modules: Mapping[str, nn.Module], groups: Sequence[ChannelGroup], keep: Mapping[int, Tensor]
) -> dict[str, nn.Module]:
    """Returns modules whose own tensors and counts are cut, by name; what they hold is shared with the given ones.

    Args:
        modules: the network's modules by name.
        groups: all groups.
        keep: as for `cut`.
    """
    masks: dict[tuple[str, str, int], Tensor] = {}
    lost: dict[tuple[str, str], int] = {}
    for index, kept in keep.items():
        group = groups[index]
        stays = torch.zeros(group.channels, dtype=torch.bool)
        stays[kept] = True
        for side in group.tensors:
            size = getattr(modules[side.module], side.name).shape[side.axis]
            mask = masks.setdefault((side.module, side.name, side.axis), torch.ones(size, dtype=torch.bool))
            mask[side.local] = stays[side.root]
        for count in group.counts:
            place = count.module, count.attribute
            lost[place] = lost.get(place, 0) + int((~stays[count.root]).sum())
    found = {name: _shell(modules[name]) for name in {key[0] for key in masks} | {key[0] for key in lost}}
    for (name, key, axis), mask in masks.items():
        module, places = found[name], mask.nonzero().flatten()
        tensor = getattr(module, key)
        smaller = tensor.detach().index_select(axis, places)
        if key in module._parameters:
            module._parameters[key] = nn.Parameter(smaller, tensor.requires_grad)
        else:
            module._buffers[key] = smaller
    for (name, attribute), less in lost.items():
        value = getattr(found[name], attribute)
        setattr(found[name], attribute, value - less if isinstance(value, int) else (*value[:-1], value[-1] - less))
    return found


def _shell(module: nn.Module) -> nn.Module:
    """Returns a copy of a module without its hooks that holds the same tensors and parts."""
    new = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        setattr(new, name, dict(getattr(module, name)))
    new._forward_hooks = type(module._forward_hooks)()
    new._forward_pre_hooks = type(module._forward_pre_hooks)()
    return new


def _indices(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: mask.nonzero().flatten() for name, mask in masks.items()}


def channels_in(module: nn.Module) -> int:
    """Returns the number of input channels or features of a layer."""
    return weight_of(module).shape[1] * groups_of(module)


def channels_out(module: nn.Module) -> int:
    """Returns the number of output channels of a layer or the features of a BatchNorm."""
    return module.num_features if isinstance(module, NORMS) else out_channels(module)


def cut_norm(norm: nn.Module, keep: Tensor) -> nn.Module:
    """Returns a BatchNorm of the features `keep` only."""
    assert isinstance(norm, NORMS)
    new = _shell(norm)  # a user's own norm may do more
    for key, parameter in norm._parameters.items():
        if parameter is not None:
            new._parameters[key] = nn.Parameter(parameter.detach()[keep], parameter.requires_grad)
    for key, buffer in norm._buffers.items():
        if buffer is not None and buffer.dim():
            new._buffers[key] = buffer[keep]
    vars(new)["num_features"] = keep.numel()
    return new
