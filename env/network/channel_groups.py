"""Channels that must be removed together: found with Torch-Pruning's dependency graph, each group proved by a cut."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import Tensor, nn

from plywise.compressors.errors import UnsupportedLayerError
from plywise.compressors.modules.assembly import assemble
from plywise.compressors.modules.layers import WEIGHTED, groups_of, is_depthwise, out_channels, weight_of, with_weights
from plywise.compressors.statistics.channels import keep_inputs, keep_outputs
from plywise.compressors.statistics.statistics import LayerStatistics
from plywise.env.network.gradients import gradients
from plywise.env.network.recurrent_groups import Part, StandIn, stand_ins, taken_apart

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
class ChannelGroup:
    """Output channels that several modules share.

    Attributes:
        leader: the layer that runs first and decides.
        channels: how many there are; where whole attention heads are cut, a head counts as one.
        unit: outputs of the leader that make up one channel: the width of a head, else 1.
        producers: output sides: of layers, depthwise convolutions and BatchNorms.
        consumers: input sides of layers that read them.
    """

    leader: str
    channels: int
    producers: tuple[Side, ...]
    consumers: tuple[Side, ...]
    unit: int = 1


def find_groups(model: nn.Module, example: Tensor, order: Sequence[str]) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Finds the groups that can be cut.

    Args:
        model: in eval mode, BatchNorms folded.
        example: `(n, ...)` input.
        order: names of the compressible layers as they run; each runs once.

    Returns:
        The groups in the order of their leaders, and for each layer whose channels cannot be cut the reason.
    """
    modules = dict(model.named_modules())
    names = {id(module): name for name, module in modules.items()}
    reasons: dict[str, str] = {}
    groups: list[ChannelGroup] = []
    seen: set[str] = set()
    heads, recurrences = _head_groups(modules, order), stand_ins(modules)
    names |= {id(source): name for name, stand_in in recurrences.items() for source in stand_in.sources}
    with torch.no_grad():
        outputs = model(example)
    try:
        graph = _dependency_graph(assemble(model, recurrences) if recurrences else model, example)
    except Exception as error:  # whatever third-party tracing raises, the layers stay usable without pruning
        return [], dict.fromkeys(order, f"the dependency graph cannot be traced ({type(error).__name__}: {error})")
    for name in order:
        layer, owner = modules[name], name.rpartition(".")[0]
        if owner in recurrences and name not in seen:
            layer = recurrences[owner].sources[0]
        if name in seen or is_depthwise(layer):
            continue
        if groups_of(layer) > 1:
            reasons[name] = "grouped convolution: its channels cannot be cut one by one"
            continue
        if isinstance(layer, nn.Embedding):
            reasons[name] = "the vectors of an embedding are made thinner by low_rank, not cut"
            continue
        if layer not in graph.module2node:
            reasons[name] = "not found in the dependency graph"
            continue
        try:
            group, reason = heads.get(name) or _group(graph, name, layer, names, order, recurrences)
            reason = reason or _disproof(model, example, outputs, group)
        except Exception as error:  # torch-pruning's graph code raises anything on what it does not know
            group, reason = None, f"the dependency graph fails here ({type(error).__name__}: {error})"
        members = [side.module for side in group.producers] if group else [name]
        seen.update(members)
        if reason is not None or group is None:
            reasons.update({member: reason or "" for member in members if member in order})
        else:
            groups.append(group)
    return groups, reasons


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


def _indices(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: mask.nonzero().flatten() for name, mask in masks.items()}


def channels_in(module: nn.Module) -> int:
    """Returns the number of input channels or features of an ungrouped layer."""
    return weight_of(module).shape[1]


def channels_out(module: nn.Module) -> int:
    """Returns the number of output channels of a layer or the features of a BatchNorm."""
    return module.num_features if isinstance(module, NORMS) else out_channels(module)


def cut_norm(norm: nn.Module, keep: Tensor) -> nn.Module:
    """Returns a BatchNorm of the features `keep` only."""
    assert isinstance(norm, NORMS)
    new = type(norm)(keep.numel(), norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    state = {key: value if value.dim() == 0 else value[keep] for key, value in norm.state_dict().items()}
    new.load_state_dict(state)
    return new.train(norm.training)


def _dependency_graph(model: nn.Module, example: Tensor) -> tp.DependencyGraph:
    with gradients(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tp.DependencyGraph().build_dependency(model, example_inputs=example, verbose=False)


def _group(
    graph: tp.DependencyGraph,
    name: str,
    layer: nn.Module,
    names: Mapping[int, str],
    order: Sequence[str],
    recurrences: Mapping[str, StandIn],
) -> tuple[ChannelGroup | None, str | None]:
    own = recurrences.get(names[id(layer)])
    prune, every = graph.get_pruner_of_module(layer).prune_out_channels, list(range(out_channels(layer)))
    found = [
        item
        for source in ([layer] if own is None else own.sources)
        for item in graph.get_pruning_group(source, prune, every).items
    ]
    producers: list[Side] = []
    consumers: list[Side] = []
    reason = None
    for item in found:
        module = item.dep.target.module
        if not isinstance(module, nn.Module) or isinstance(module, tp.ops.DummyMHA):
            reason = reason or "shares channels with a bare parameter"
            continue
        if type(module).__module__.startswith("torch_pruning"):
            continue  # element-wise and reshaping operators carry no weights
        target = names.get(id(module), type(module).__name__)
        local, root = torch.tensor(list(item.idxs)), torch.tensor(list(item.root_idxs))
        makes = graph.is_out_channel_pruning_fn(item.dep.handler)
        if is_depthwise(module) and out_channels(module) != groups_of(module):
            reason = reason or f"shares channels with {target}, a depthwise convolution that multiplies channels"
        if isinstance(module, NORMS) or is_depthwise(module):
            producers.append(Side(target, local, root))
        elif target in recurrences or (
            isinstance(module, WEIGHTED)
            and not isinstance(module, nn.Embedding)
            and groups_of(module) == 1
            and target in order
        ):
            (producers if makes else consumers).append(Side(target, local, root))
        else:
            reason = reason or f"shares channels with {target} ({type(module).__name__})"
    if not consumers:
        reason = reason or "its channels are the network's outputs"
    if any(side.module in recurrences for side in (*producers, *consumers)):
        try:
            apart = taken_apart(recurrences, order, map(_part, producers), map(_part, consumers))
            producers, consumers = ([Side(*part) for part in parts] for parts in apart)
        except UnsupportedLayerError as error:
            reason = reason or str(error)
    # Layers are visited as they run, so the root is the first producer; only depthwise followers could not be roots.
    channels, unit = (out_channels(layer), 1) if own is None else (own.units, own.gates)
    return ChannelGroup(name, channels, tuple(producers), tuple(consumers), unit), reason


def _part(side: Side) -> Part:
    return side.module, side.local, side.root


def _head_groups(modules: Mapping[str, nn.Module], order: Sequence[str]) -> dict[str, tuple[ChannelGroup, str | None]]:
    """Returns by leader the heads of each attention, which Torch-Pruning does not know, and why they cannot be cut.

    An attention is a module that knows its `head_dim` and holds four linear layers, which run in the order of query,
    key, value and output. Whether the number of heads follows from their widths, the cut tells.
    """
    found: dict[str, tuple[ChannelGroup, str | None]] = {}
    for name, module in modules.items():
        width = getattr(module, "head_dim", None)
        inside = [layer for layer in order if layer.rpartition(".")[0] == name]
        layers = [modules[layer] for layer in inside]
        if type(width) is not int or len(inside) != 4 or not all(type(layer) is nn.Linear for layer in layers):
            continue
        sizes = {*map(channels_out, layers[:3]), channels_in(layers[3])}
        total = sizes.pop()
        if sizes or width < 1 or total % width:
            continue
        local = torch.arange(total)
        sides = [Side(layer, local, local // width) for layer in inside]
        reason = "its attention has a single head" if total == width else None
        found[inside[0]] = ChannelGroup(inside[0], total // width, tuple(sides[:3]), (sides[3],), width), reason
    return found


def _disproof(model: nn.Module, example: Tensor, outputs: Tensor, group: ChannelGroup | None) -> str | None:
    """Returns why the group cannot be cut: silencing channels and cutting them must give the same output."""
    if group is None:
        return None
    keep = torch.randperm(group.channels, generator=torch.Generator().manual_seed(0))
    keep = keep[: max(1, group.channels // 2)].sort().values
    modules = dict(model.named_modules())
    reads, makes = cut(modules, [group], {0: keep})
    silenced: dict[str, nn.Module] = {}
    smaller: dict[str, nn.Module] = {}
    for name in {**reads, **makes}:
        module = modules[name]
        if isinstance(module, NORMS):
            smaller[name] = cut_norm(module, makes[name])
            continue
        statistics = LayerStatistics.white(module)
        reduced = module
        if name in reads:
            gone = torch.ones(channels_in(module), dtype=torch.bool).index_fill_(0, reads[name], False)
            weight = weight_of(module).clone()
            weight[:, gone] = 0.0
            silenced[name] = with_weights(module, weight)
            reduced, statistics = keep_inputs(reduced, statistics, reads[name])
        if name in makes:
            reduced, statistics = keep_outputs(reduced, statistics, makes[name])
        smaller[name] = reduced
    with torch.no_grad():
        expected = assemble(model, silenced)(example)
        try:
            actual = assemble(model, smaller)(example)
        except Exception as error:  # the user's forward may raise anything on a shape that it does not expect
            return f"the network does not run with fewer channels here ({type(error).__name__}: {error})"
    # A wrong cut differs by about what silencing changes, however small that is; rounding differs by far less.
    tolerance = max(0.01 * float((expected - outputs).abs().max()), 1e-5 * float(expected.abs().max()))
    if actual.shape != expected.shape or not float((actual - expected).abs().max()) <= tolerance:
        return "cutting its channels is not the same as silencing them (they meet others in a sum, a norm or a reshape)"
    return None
