"""One forward pass in which every tensor carries the labels of its channels.

Each layer gives its output channels new labels. Operators that move entries move their labels with them; where channels
meet (in a sum, with a bare parameter, in a product of queries and keys) their labels are united. What a layer reads
tells which labels its input channels have. So all that has to be cut together shares one label in the end, whatever
the network does in between: concatenations, parts, shuffles, heads. What is not understood is frozen, with the reason.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plywise.compressors.modules.layers import WEIGHTED, channels_last, groups_of, is_depthwise, out_channels
from plywise.compressors.modules.projected_recurrence import ProjectedRecurrence
from plywise.env.channels.labels import Labels, compact, narrow
from plywise.env.channels.operators import Step, follow, kept_statistics
from plywise.env.task.batch import tensors_in
from plywise.env.task.forward import Run

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
OPAQUE = (*WEIGHTED, ProjectedRecurrence)
"""Modules that are seen as a whole."""

OUTPUTS = "its channels are the network's outputs"


@dataclass
class Channels:
    """What the pass found. Labels are raw; `labels.classes` tells which are united.

    Attributes:
        labels: all of them.
        inputs, outputs: labels `(in,)` and `(out,)` of the channels of each layer, by name.
        norms: labels `(features,)` of each BatchNorm, by name.
        tensors: labels of bare parameters and buffers, in their shapes, by names of module and tensor.
        counts: labels `(n,)` of what an attribute of a module counts, by names of module and attribute.
        grids: labels and some of their axes: what stays along these must be a grid, for the network splits them so.
        shapes: labels of what was reshaped or split, and the module that did it: its attributes may say into how many.
        statistics: labels over which something is averaged, as a norm does.
        frozen: labels that cannot be cut, with the reason, the first one first.
    """

    labels: Labels
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)
    tensors: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    counts: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    grids: list[tuple[Tensor, tuple[int, ...]]] = field(default_factory=list)
    shapes: list[tuple[str, Tensor]] = field(default_factory=list)
    statistics: list[Tensor] = field(default_factory=list)
    frozen: list[tuple[Tensor, str]] = field(default_factory=list)


def trace_channels(model: nn.Module, run: Run, order: Collection[str]) -> Channels:
    """Runs `model` twice and returns the labels of its channels.

    The first pass unites what is certainly tied. The second one knows it where it has to tell channels from other axes,
    as in a mean or where a parameter is broadcast.

    Args:
        model: in eval mode.
        run: runs it.
        order: names of the layers; each runs once.
    """
    first = _Tracing(model, order, None)
    first.run(run)
    second = _Tracing(model, order, first.found.labels.all_classes)
    second.run(run)
    found = second.found
    # A tensor is cut along its axes, as what is reshaped is.
    grids = [*found.grids, *((labels, tuple(range(labels.dim()))) for labels in found.tensors.values())]
    for labels, axes in grids:
        along = [axis for axis in axes if found.labels.varies(labels, [axis])]
        found.labels.unite_along(labels, along[:-1])
    return found


def run_silenced(model: nn.Module, run: Run, order: Collection[str], classes: Tensor, gone: Tensor) -> Any:
    """Runs `model`, in which some channels count for nothing, with the statistics of norms over the others alone.

    Args:
        model: whose readers of these channels have weights of zero; else as it was traced.
        run: runs it.
        order: as it was traced.
        classes: `(labels,)` that were found.
        gone: `(labels,)` which labels count for nothing.
    """
    return _Tracing(model, order, classes, gone).run(run)


class _Tracing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(
        self, model: nn.Module, order: Collection[str], classes: Tensor | None, gone: Tensor | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = Channels(Labels(classes))
        self.settled = classes is not None
        self._model, self._order, self._gone = model, order, gone
        self._known: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []  # ids stay unique only while the tensors live
        self._within: list[str] = []
        self._paused = 0
        self._bare: dict[int, list[tuple[str, str]]] = {}
        for name, module in model.named_modules():
            if not isinstance(module, WEIGHTED):
                for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
                    if tensor is not None and tensor.is_floating_point():
                        self._bare.setdefault(id(tensor), []).append((name, key))

    def run(self, run: Run) -> Any:
        with torch.no_grad(), self._hooks(), self:
            outputs = run(self._model)
        for tensor in tensors_in(outputs):
            self._freeze(self._of(tensor), OUTPUTS)
        return outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        step = Step.of(func, args, kwargs)
        for tensor in step.tensors:
            self._touch(tensor)
        labels = {id(tensor): self._known[id(tensor)] for tensor in step.tensors if id(tensor) in self._known}
        outputs = None
        if self._gone is not None and labels:
            outputs = kept_statistics(step, labels, self._gone)
        outputs = func(*args, **kwargs) if outputs is None else outputs
        if labels:
            made = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
            self._alive.extend([*step.tensors, *made])
            self._follow(step, labels, made)
        return outputs

    def _follow(self, step: Step, labels: dict[int, Tensor], made: Sequence[Tensor]) -> None:
        owner = self._within[-1] if self._within else ""
        found = follow(step, labels, made, self.found, (owner, self._model.get_submodule(owner)), self.settled)
        if found is None:
            kind = type(self._model.get_submodule(owner)).__name__
            for each in labels.values():
                self._freeze(each, f"shares channels with {owner or 'the network'} ({kind}), which runs {step.name}")
            return
        for tensor, label in zip(made, found, strict=False):
            if label is None:
                continue
            if step.in_place and tensor._base is not None and bool((narrow(labels.get(id(tensor), _NONE)) == 0).any()):
                self._freeze(label, "its channels are written into a part of another tensor")
            self._known[id(tensor)] = compact(label)

    def _touch(self, tensor: Tensor) -> None:
        """Gives a bare parameter its labels when it is first used."""
        places = self._bare.get(id(tensor))
        if places is not None and id(tensor) not in self._known:
            labels = self.found.labels.fresh(tensor.numel(), bare=True).reshape(tensor.shape)
            self._known[id(tensor)] = labels
            self.found.tensors.update(dict.fromkeys(places, labels))

    def _of(self, tensor: Tensor) -> Tensor:
        return self._known.get(id(tensor), torch.zeros((), dtype=torch.int64).expand(tensor.shape))

    def _freeze(self, labels: Tensor, reason: str) -> None:
        self.found.frozen.append((narrow(labels).flatten(), reason))

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        handles: list[Any] = []
        whole: list[str] = []  # recurrences, which call their layers only where these are watched
        for name, module in self._model.named_modules():
            if any(name.startswith(f"{recurrence}.") for recurrence in whole):
                continue
            if isinstance(module, ProjectedRecurrence):
                whole.append(name)
            before, after = self._entering(name, module), self._leaving(name, module)
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True, prepend=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True, always_call=False))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._within.append(name)
            self._paused += isinstance(module, OPAQUE)

        return hook

    def _leaving(self, name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._paused += 1
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            if isinstance(module, OPAQUE):
                if isinstance(module, ProjectedRecurrence):
                    self._recurrence(name, module, tensors, output)
                else:
                    self._layer(name, module, tensors[0], output)
                self._paused -= 1
            elif isinstance(module, BATCH_NORMS):
                self.found.norms[name] = self._channels_of(self._of(tensors[0]), 1)
            elif isinstance(module, _InstanceNorm):
                self.found.counts[name, "num_features"] = self._channels_of(self._of(tensors[0]), 1)
            elif isinstance(module, nn.RMSNorm) and len(module.normalized_shape) == 1:
                labels = self._of(tensors[0])
                if not self.found.labels.varies(labels, range(labels.dim() - 1)):  # as it does where it norms heads
                    self.found.counts[name, "normalized_shape"] = self._channels_of(labels, -1)
            self._within.pop()
            self._paused -= 1

        return hook

    def _layer(self, name: str, module: nn.Module, inputs: Tensor, output: Any) -> None:
        reads, kind = self._of(inputs), type(module).__name__
        if name not in self._order or not isinstance(output, Tensor):
            self._freeze(reads, f"shares channels with {name} ({kind})")
            return
        self._alive.extend((inputs, output))
        axis, labels = -1 if channels_last(module) else 1, self.found.labels
        made = self.found.outputs.get(name)  # it may have run before
        made = labels.fresh(out_channels(module)) if made is None else made
        if not isinstance(module, nn.Embedding):
            others = [place for place in range(reads.dim()) if place != axis % reads.dim()]
            if not labels.varies(reads, [axis % reads.dim()]) and labels.varies(reads, others):
                self._freeze(made, "it mixes the positions of channels, which stay what they are")
                self.found.outputs[name] = made
                self._known[id(output)] = reads.narrow(axis, 0, 1).expand(output.shape)
                return
            read, groups = self._channels_of(reads, axis), groups_of(module)
            if is_depthwise(module) and len(made) != len(read):
                reason = f"shares channels with {name}, a depthwise convolution that multiplies channels"
                self._freeze(torch.cat([read, made]), reason)
            elif is_depthwise(module):
                labels.unite(made, read)
                self._freeze(made[read == 0], "it filters channels that no layer makes")
            else:  # as many of each group of a convolution
                labels.unite_along(read.view(groups, -1), [0])
                labels.unite_along(made.view(groups, -1), [0])
                if name in self.found.inputs:
                    labels.unite(self.found.inputs[name], read)
                self.found.inputs[name] = read
        else:
            self._freeze(made, f"shares channels with {name} (Embedding)")
        self.found.outputs[name] = made
        shape = [1] * output.dim()
        shape[axis] = len(made)
        self._known[id(output)] = made.view(shape).expand(output.shape)

    def _recurrence(self, name: str, module: ProjectedRecurrence, inputs: Sequence[Tensor], output: Any) -> None:
        """All layers and directions of a recurrence lose the same hidden units."""
        labels, made = self.found.labels, self.found.labels.fresh(module.hidden_size)
        outside = [f"{name}.{part}" for part, _ in module.named_children() if f"{name}.{part}" not in self._order]
        if outside:
            reads = torch.cat([narrow(self._of(tensor)).flatten() for tensor in inputs])
            self._freeze(torch.cat([made, reads]), f"shares channels with {outside[0]}, which stays as it is")
        read = self._channels_of(self._of(inputs[0]), -1)
        for layer, places in enumerate(module.layers):
            for place in places:
                for side in ("input", "hidden"):
                    self.found.outputs[f"{name}.{side}_{place}"] = made.repeat_interleave(module.gates)
                self.found.inputs[f"{name}.hidden_{place}"] = made
                self.found.inputs[f"{name}.input_{place}"] = made.repeat(len(places)) if layer else read
        for state in inputs[1:]:
            if state.is_floating_point():
                labels.unite(self._channels_of(self._of(state), -1), made)
        sequence, *states = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
        for tensor in (sequence, *states):
            self._alive.append(tensor)
            self._known[id(tensor)] = made.repeat(tensor.shape[-1] // len(made)).expand(tensor.shape)

    def _channels_of(self, labels: Tensor, axis: int) -> Tensor:
        """Returns the labels `(channels,)` along an axis; all that stand at one place of it are united."""
        axis %= labels.dim()
        others = [each for each in range(labels.dim()) if each != axis]
        return self.found.labels.unite_along(labels, others).flatten()


_NONE = torch.zeros(1, dtype=torch.int64)
