"""Finds channels that must be removed together: by labels that a forward pass carries, each group proved by a cut."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plywise.compressors.modules.assembly import assemble
from plywise.compressors.modules.layers import bias_of, groups_of, is_depthwise, weight_of, with_weights
from plywise.compressors.statistics.channels import rebuilt
from plywise.env.channels.tracing import Channels, run_silenced, trace_channels
from plywise.env.network.channel_groups import (
    NORMS,
    ChannelGroup,
    Count,
    Side,
    TensorSide,
    channels_in,
    cut,
    cut_norm,
    trimmed,
)
from plywise.env.task.batch import tensors_in
from plywise.env.task.forward import Run


def find_groups(model: nn.Module, run: Run, order: Sequence[str]) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Finds the groups that can be cut.

    Args:
        model: in eval mode, BatchNorms folded.
        run: runs it on an example.
        order: names of the compressible layers, in the order of their first runs.

    Returns:
        The groups in the order of their leaders, and for each layer whose channels cannot be cut the reason.
    """
    modules = dict(model.named_modules())
    try:
        traced = trace_channels(model, run, order)
    except Exception as error:  # a user's forward may do anything; the layers stay usable without pruning
        return [], dict.fromkeys(order, f"its channels cannot be followed ({type(error).__name__}: {error})")
    finder = _Finder(modules, traced, order)
    with torch.no_grad():
        proof = _Proof(model, run, order, traced, run(model))
    reasons: dict[str, str] = {}
    groups: list[ChannelGroup] = []
    seen: set[str] = set()
    for name in order:
        if name in seen or is_depthwise(modules[name]):
            continue
        if isinstance(modules[name], nn.Embedding):
            continue
        group, reason = finder.group(name)
        members = [side.module for side in group.producers if side.module in order]
        if reason is None and any(member in seen for member in members):
            reason = "shares channels with layers that follow different ones"
        if reason is None:
            group, reason = proof.tried(finder.variants(group))
        seen.update(members)
        if reason is None:
            groups.append(group)
        else:
            reasons.update(dict.fromkeys(members, reason))
    tables = [name for name in order if isinstance(modules[name], nn.Embedding)]
    reasons |= dict.fromkeys(tables, "the vectors of an embedding are made thinner by low_rank, not cut")
    return groups, reasons


@dataclass(frozen=True)
class _Finder:
    modules: Mapping[str, nn.Module]
    traced: Channels
    order: Sequence[str]

    def group(self, leader: str) -> tuple[ChannelGroup, str | None]:
        """Returns what shares the output channels of a layer, and why they cannot be cut if that is known."""
        traced, order = self.traced, self.order
        own = self._classes(traced.outputs[leader])
        classes, first, root = np.unique(own, return_index=True, return_inverse=True)
        ranks = np.argsort(np.argsort(first))  # channels in the order of the leader's outputs
        roots = {int(each): int(rank) for each, rank in zip(classes, ranks, strict=True)}
        layers = [name for name in order if name != leader and name in traced.outputs]
        makers = [(name, traced.outputs[name]) for name in (leader, *layers)] + list(traced.norms.items())
        group = ChannelGroup(
            leader,
            len(classes),
            tuple(side for name, labels in makers if (side := self._side(name, labels, roots))),
            tuple(side for name in order if (side := self._side(name, traced.inputs.get(name), roots))),
            tuple(side for place, labels in traced.tensors.items() if (side := self._tensor(place, labels, roots))),
            tuple(count for place, labels in traced.counts.items() if (count := self._count(place, labels, roots))),
        )
        return group, self._refusal(group, set(roots), np.bincount(root))

    def variants(self, group: ChannelGroup) -> list[ChannelGroup]:
        """Returns the group as it is, and with the attributes that say how tensors are reshaped or split, if any."""
        roots = dict(zip(self._classes(self.traced.outputs[group.leader]).tolist(), group.root.tolist(), strict=True))
        found = {}
        for owner, attribute, labels in self._sizes:
            _, root = _found(self._classes(labels), roots)
            if len(root):
                found[owner, attribute] = Count(owner, attribute, root)
        return [group, *([replace(group, counts=(*group.counts, *found.values()))] if found else [])]

    @cached_property
    def _sizes(self) -> list[tuple[str, str, Tensor]]:
        """Attributes that are as large as an axis that their module makes, and the labels `(n,)` along that."""
        found = []
        for owner, labels in self.traced.shapes:
            known = {name: value for name, value in vars(self.modules[owner]).items() if type(value) is int}
            for axis, size in enumerate(labels.shape):
                names = [name for name, value in known.items() if value == size and not name.startswith("_")]
                if size > 1 and names and self.traced.labels.varies(labels, [axis]):
                    # Where a head is as wide as there are heads, the number is meant.
                    plain = [name for name in names if not any(word in name for word in ("dim", "size", "width"))]
                    along = labels.movedim(axis, 0).reshape(size, -1)[:, 0]
                    found += [(owner, name, along) for name in plain or names]
        return found

    def _refusal(self, group: ChannelGroup, classes: set[int], times: Any) -> str | None:
        for labels, reason in self.traced.frozen:
            if not classes.isdisjoint(self._classes(labels).tolist()):
                return reason
        if group.channels == 1:
            return "its channels only go together, as those of an attention with a single head"
        for side in group.tensors:
            if side.name in self.modules[side.module]._non_persistent_buffers_set:
                return f"shares channels with {side.module}.{side.name}, a buffer that no file holds"
        if len(set(times.tolist())) > 1:
            return "its channels go together in unequal numbers"
        if not group.consumers:
            return "no layer reads its channels"
        return None

    def _classes(self, labels: Tensor) -> Any:
        return self.traced.labels.classes(labels).numpy()

    def _side(self, name: str, labels: Tensor | None, roots: Mapping[int, int]) -> Side | None:
        if labels is None:
            return None
        local, root = _found(self._classes(labels), roots)
        return Side(name, local, root) if len(local) else None

    def _tensor(self, place: tuple[str, str], labels: Tensor, roots: Mapping[int, int]) -> TensorSide | None:
        if isinstance(self.modules[place[0]], NORMS):
            return None
        axes = [axis for axis in range(labels.dim()) if self.traced.labels.varies(labels, [axis])]
        axis = axes[0] if axes else 0
        along = labels.movedim(axis, 0).reshape(labels.shape[axis], -1)[:, 0] if labels.dim() else labels
        local, root = _found(self._classes(along), roots)
        return TensorSide(place[0], local, root, place[1], axis) if len(local) else None

    def _count(self, place: tuple[str, str], labels: Tensor, roots: Mapping[int, int]) -> Count | None:
        if isinstance(self.modules[place[0]], NORMS):
            return None
        local, root = _found(self._classes(labels), roots)
        return Count(*place, root) if len(local) else None


def _found(classes: Any, roots: Mapping[int, int]) -> tuple[Tensor, Tensor]:
    """Returns the places of classes that are among some, and the channel of each."""
    pairs = [(place, roots[each]) for place, each in enumerate(classes.reshape(-1).tolist()) if each in roots]
    local, root = zip(*pairs, strict=True) if pairs else ((), ())
    return torch.tensor(local, dtype=torch.int64), torch.tensor(root, dtype=torch.int64)


@dataclass(frozen=True)
class _Proof:
    model: nn.Module
    run: Run
    order: Sequence[str]
    traced: Channels
    outputs: Any

    def tried(self, variants: Sequence[ChannelGroup]) -> tuple[ChannelGroup, str | None]:
        """Returns the first of some groups that a cut proves, or the first one and why it cannot be cut."""
        reasons = []
        for group in variants:
            reason = self._disproof(group)
            if reason is None:
                return group, None
            reasons.append(reason)
        return variants[0], reasons[0]

    def _disproof(self, group: ChannelGroup) -> str | None:
        """Returns why a group cannot be cut: without channels, outputs must be those where they count for nothing.

        That is, where their readers have weights of zero, and norms take their statistics over the other channels.
        """
        keep = torch.randperm(group.channels, generator=torch.Generator().manual_seed(0))
        keep = keep[: max(1, group.channels // 2)].sort().values
        modules = dict(self.model.named_modules())
        reads, makes = cut(modules, [group], {0: keep})
        silenced: dict[str, nn.Module] = {}
        smaller = trimmed(modules, [group], {0: keep})
        try:
            for name in {**reads, **makes}:
                module = modules[name]
                if isinstance(module, NORMS):
                    smaller[name] = cut_norm(module, makes[name])
                    continue
                if name in reads:
                    silenced[name] = _silenced(module, reads[name])
                smaller[name] = _cut(module, reads.get(name), makes.get(name))
            with torch.no_grad():
                expected = self._expected(assemble(self.model, silenced), group, keep)
                actual = self.run(assemble(self.model, smaller))
        except Exception as error:  # the user's forward may raise anything on a shape that it does not expect
            return f"the network does not run with fewer channels here ({type(error).__name__}: {error})"
        every = zip(*map(tensors_in, (actual, expected, self.outputs)), strict=True)
        if all(_same_cut(*each) for each in every):
            return None
        return "cutting its channels is not the same as silencing them (they meet others in a sum, a norm or a reshape)"

    def _expected(self, silenced: nn.Module, group: ChannelGroup, keep: Tensor) -> Any:
        classes = self.traced.labels.all_classes
        gone = torch.ones(group.channels, dtype=torch.bool).index_fill_(0, keep, False)
        own = classes[self.traced.outputs[group.leader]]
        lost = torch.isin(classes, own[gone[group.root]])
        if not any(bool(lost[labels].any()) for labels in self.traced.statistics):
            return self.run(silenced)
        return run_silenced(silenced, self.run, self.order, classes, lost)


def _silenced(module: nn.Module, keep: Tensor) -> nn.Module:
    """Returns a layer that reads all channels, those that are not kept with weights of zero."""
    weight = weight_of(module).clone()
    for rows, stays in _blocks(module, weight, keep):
        rows[:, ~stays] = 0.0
    return with_weights(module, weight)


def _cut(module: nn.Module, reads: Tensor | None, makes: Tensor | None) -> nn.Module:
    weight, bias, groups = weight_of(module), bias_of(module), groups_of(module)
    if reads is not None and not is_depthwise(module):
        weight = torch.cat([rows[:, stays] for rows, stays in _blocks(module, weight, reads)])
    if makes is not None:
        weight, bias = weight[makes], None if bias is None else bias[makes]
        groups = len(makes) if is_depthwise(module) else groups
    return rebuilt(module, weight, bias, groups)


def _blocks(module: nn.Module, weight: Tensor, keep: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the rows of each group of a layer and which of its inputs are kept."""
    groups = groups_of(module)
    stays = torch.zeros(channels_in(module), dtype=torch.bool).index_fill_(0, keep, True)
    return zip(weight.view(groups, -1, *weight.shape[1:]), stays.view(groups, -1), strict=True)


def _same_cut(actual: Tensor, expected: Tensor, outputs: Tensor) -> bool:
    if actual.shape != expected.shape or not expected.numel() or not expected.is_floating_point():
        return actual.shape == expected.shape
    # A wrong cut differs by about what silencing changes, however small that is; rounding differs by far less.
    tolerance = max(0.01 * float((expected - outputs).abs().max()), 1e-5 * float(expected.abs().max()))
    return float((actual - expected).abs().max()) <= tolerance
