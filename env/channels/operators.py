"""What each operator of torch does to the labels of channels: it moves them, unites them, or averages over them."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from plywise.env.channels.labels import Labels, narrow

Found = list[Tensor | None] | None
"""Labels of what an operator puts out, in order; None for an operator that is not understood."""

SAME = ("clone", "alias", "detach", "contiguous", "lift_fresh", "_to_copy", "copy", "native_dropout", "dropout")
RESHAPING = ("view", "_unsafe_view", "reshape", "_reshape_alias")
MOVING = (
    *("permute", "transpose", "t", "expand", "cat", "stack", "unsqueeze", "squeeze", "unbind", "index", "roll", "flip"),
    *("index_select", "gather", "repeat", "select", "pixel_shuffle", "pixel_unshuffle", "unfold", "constant_pad_nd"),
)
POINTWISE = ("_prelu_kernel", "hardswish", "hardsigmoid", "hardswish_", "mish", "masked_fill", "where", "rrelu")
AVERAGES = ("mean", "sum", "var", "std", "var_mean", "std_mean", "amax", "amin", "linalg_vector_norm", "norm")
CHOICES = ("max", "min")
"""Averages as well, where they go along one axis; else of two tensors."""
SHARES = ("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "sort", "topk", "argmax", "argmin", "argsort")
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")
POSITIONS = re.compile(r"(?:pool|upsample\w*|pad)([123])d|upsample_\w*?([123])d")
"""Operators over the last one to three axes that treat channels alike; the number is in their names."""


@dataclass(frozen=True, eq=False)
class Step:
    """One run of an operator.

    Attributes:
        function: the operator.
        name: without overload and mark of those in place.
        arguments: by their names in its schema.
        tensors: all among them, in order.
        in_place: whether it writes over its first argument.
    """

    function: Any
    name: str
    arguments: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    in_place: bool

    @classmethod
    def of(cls, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> "Step":
        """Reads an operator's schema."""
        schema = function._schema.arguments
        given = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
        given |= {argument.name: value for argument, value in zip(schema, args, strict=False)} | dict(kwargs)
        tensors = tuple(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        name = function.overloadpacket.__name__
        in_place = name.endswith("_") and not name.endswith("__")
        return cls(function, name.removesuffix("_") if in_place else name, given, tensors, in_place)

    @property
    def first(self) -> Tensor:
        """What it works on."""
        return self.tensors[0]

    def axes(self) -> list[int]:
        """Returns the axes that it goes along; all where it names none."""
        named = self.arguments.get("dim", self.arguments.get("dims"))
        every = range(self.first.dim())
        named = [named] if isinstance(named, int) else named
        return [axis % self.first.dim() for axis in named] if named else list(every)


@dataclass(frozen=True, eq=False)
class _Context:
    step: Step
    by_id: Mapping[int, Tensor]
    made: Sequence[Tensor]
    found: Any  # Channels
    owner: tuple[str, nn.Module]
    settled: bool

    @property
    def labels(self) -> Labels:
        labels: Labels = self.found.labels
        return labels

    def of(self, tensor: Tensor) -> Tensor:
        labels = self.by_id.get(id(tensor))
        return torch.zeros((), dtype=torch.int64).expand(tensor.shape) if labels is None else labels

    def argument(self, name: str) -> Tensor | None:
        tensor = self.step.arguments.get(name)
        return self.by_id.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def count(self, attribute: str, labels: Tensor) -> None:
        """Notes what an attribute of the module that runs counts, where it has it."""
        name, module = self.owner
        if attribute in vars(module):
            self.found.counts[name, attribute] = labels.flatten()


def follow(
    step: Step,
    labels: Mapping[int, Tensor],
    made: Sequence[Tensor],
    found: Any,
    owner: tuple[str, nn.Module],
    settled: bool,
) -> Found:
    """Returns the labels of what an operator has put out, and notes in `found` what it does to channels.

    Args:
        step: the operator.
        labels: of the tensors that it read, by their ids.
        made: tensors that it put out.
        found: the `Channels`; gets counts, grids, statistics.
        owner: name and module that runs it.
        settled: whether an earlier pass has united what belongs together, so that what varies along an axis is known.
    """
    context = _Context(step, labels, made, found, owner, settled)
    rule = _rule(step)
    return None if rule is None else rule(context)


def _rule(step: Step) -> Callable[[_Context], Found] | None:
    name = step.name
    if name in _RULES:
        return _RULES[name]
    if name in CHOICES and "dim" in step.arguments:
        return _average
    if name in POINTWISE or torch.Tag.pointwise in step.function.tags:
        return _pointwise
    if "batch_norm" in name:
        return _batch_norm
    return _positions if POSITIONS.search(name) else None


def _same(context: _Context) -> Found:
    if context.step.name == "copy":
        return _pointwise(context)
    return [context.of(context.step.first)]


def _strided(context: _Context) -> Found:
    """Another layout of the same entries in memory."""
    first = context.step.first
    return [context.of(first)] if context.made[0].shape == first.shape else None


def _nothing(context: _Context) -> Found:
    return [None] * len(context.made)


def _reshape(context: _Context) -> Found:
    before, (out,) = context.of(context.step.first), context.made
    after = before.reshape(out.shape)
    for axes in split_axes(before.shape, out.shape):
        context.found.grids.append((after, axes))
    context.found.shapes.append((context.owner[0], after))
    return [after]


def split_axes(before: Sequence[int], after: Sequence[int]) -> list[tuple[int, ...]]:
    """Returns the sets of axes behind a reshape that were one axis, or shared several, before it."""
    old = [size for size in before if size > 1]
    new = [axis for axis, size in enumerate(after) if size > 1]
    found: list[tuple[int, ...]] = []
    while old and new:
        axes, left, right = [new.pop(0)], old.pop(0), 1
        right = after[axes[0]]
        while left != right:
            if left < right:
                left *= old.pop(0)
            else:
                axes.append(new.pop(0))
                right *= after[axes[-1]]
        if len(axes) > 1:
            found.append(tuple(axes))
    return found


def _move(context: _Context) -> Found:
    return [*_moved(context)]


def _moved(context: _Context) -> list[Tensor]:
    step = context.step
    arguments = dict(step.arguments)
    subject = step.function._schema.arguments[0].name  # `self`, or the list of tensors; the others are indices
    arguments[subject] = tree_map(
        lambda leaf: context.of(leaf) if isinstance(leaf, Tensor) else leaf, arguments[subject]
    )
    if step.name == "constant_pad_nd":
        arguments["value"] = 0
    return [leaf for leaf in tree_leaves(step.function(**arguments)) if isinstance(leaf, Tensor)]


def _parts(context: _Context) -> Found:
    """Equal parts of an axis lose the same channels each."""
    step, found = context.step, _moved(context)
    sizes, axis = {tensor.shape for tensor in context.made}, step.arguments.get("dim", 0)
    if len(sizes) == 1 and len(found) > 1:
        every = torch.stack(found)
        context.labels.unite_along(every, [0] if context.labels.varies(context.of(step.first), [axis]) else [])
    context.found.shapes.extend((context.owner[0], part) for part in found)
    return [*found]


def _slice(context: _Context) -> Found:
    """A part of an axis that is the same again and again, or every second entry: the others lose the same channels."""
    step, found = context.step, _moved(context)
    whole, axis, every = context.of(step.first), step.axes()[0], step.arguments["step"]
    length, size = context.made[0].shape[axis], whole.shape[axis]
    start = min(max(step.arguments.get("start") or 0, -size) % max(size, 1), size)
    if 0 < length < size and size % length == 0 and context.labels.varies(whole, [axis]):
        if every == 1 and start % length == 0:
            context.labels.unite_along(_unfolded(whole, axis, size // length, length), [axis])
        elif every == size // length:
            context.labels.unite_along(_unfolded(whole, axis, length, every), [axis + 1])
    context.found.shapes.extend((context.owner[0], part) for part in found)
    return [*found]


def _shuffle(context: _Context) -> Found:
    groups, labels = context.step.arguments["groups"], context.of(context.step.first)
    context.labels.unite_along(_unfolded(labels, 1, groups, labels.shape[1] // groups), [1])
    return _move(context)


def _unfolded(labels: Tensor, axis: int, outer: int, inner: int) -> Tensor:
    return labels.reshape((*labels.shape[:axis], outer, inner, *labels.shape[axis + 1 :]))


def _glu(context: _Context) -> Found:
    axis = context.step.arguments["dim"]
    first, second = context.of(context.step.first).chunk(2, axis)
    return [context.labels.joined(first, second)]


def _pointwise(context: _Context) -> Found:
    (out,) = context.made
    parts = [context.by_id[id(tensor)] for tensor in context.step.tensors if id(tensor) in context.by_id]
    return [_met(context, parts, out.shape)]


def _met(context: _Context, parts: Sequence[Tensor], shape: torch.Size) -> Tensor | None:
    """Unites labels of tensors that are broadcast to one shape.

    Where one is the same along an axis on which the others' channels differ, it belongs to all of them, and stays
    when some of them go: it is left out, unless it is made by layers and has channels along other axes (a gate for each
    head), with which whole rows go.
    """
    parts = [part.reshape((1,) * (len(shape) - part.dim()) + tuple(part.shape)) for part in parts]
    result: Tensor | None = None
    for index, part in enumerate(parts):
        broadcast = [axis for axis, size in enumerate(shape) if part.shape[axis] == 1 and size > 1]
        others = parts[:index] + parts[index + 1 :]
        if any(context.labels.varies(other, broadcast) for other in others):
            along = [axis for axis in range(len(shape)) if axis not in broadcast]
            if not context.settled or context.labels.is_bare(part) or not context.labels.varies(part, along):
                continue
        part = part.expand(shape)
        result = part if result is None else context.labels.joined(result, part)
    return result


def _positions(context: _Context) -> Found:
    """Pooling, resizing and padding of positions."""
    match = POSITIONS.search(context.step.name)
    assert match is not None
    count, labels = int(match[1] or match[2]), context.of(context.step.first)
    axes = range(labels.dim() - count, labels.dim())
    chosen = context.labels.unite_along(labels, list(axes))
    return [chosen.expand(context.made[0].shape), *[None] * (len(context.made) - 1)]


def _average(context: _Context) -> Found:
    """What is averaged over channels belongs to none; over other axes, channels stay what they are."""
    labels, axes = context.of(context.step.first), context.step.axes()
    kept = [axis for axis in range(labels.dim()) if axis not in axes]
    if context.labels.varies(labels, axes):
        if not context.settled:
            return _nothing(context)
        if not context.labels.varies(labels, kept):
            context.found.statistics.append(labels)
            return _nothing(context)
    chosen = context.labels.unite_along(labels, axes)
    out = context.made[0]
    shape = [1 if axis in axes else size for axis, size in enumerate(labels.shape)]
    found = chosen.expand(shape) if out.dim() == labels.dim() else chosen.expand(shape).squeeze(tuple(axes))
    return [found.expand(each.shape) for each in context.made]


def _shares(context: _Context) -> Found:
    """A softmax and the like along channels cannot lose any; along other axes it leaves them what they are."""
    labels, axes = context.of(context.step.first), context.step.axes()
    if context.labels.varies(labels, axes):
        if not context.settled:
            return [labels if each.shape == labels.shape else None for each in context.made]
        if not context.labels.varies(labels, [axis for axis in range(labels.dim()) if axis not in axes]):
            return None
    chosen = context.labels.unite_along(labels, axes)
    return [chosen.expand(each.shape) if each.dim() == chosen.dim() else None for each in context.made]


def _product(context: _Context) -> Found:
    """Along what is summed over, both factors are cut alike; of several channels there, all go or none."""
    arguments, name = context.step.arguments, context.step.name
    names = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2")}.get(name, ("self", "mat2"))
    a, b = (context.of(arguments[each]) for each in names)  # (..., i, k) and (..., k, j)
    if any(context.labels.is_bare(each) for each in (a, b)):  # or without channels
        along = ((a, [a.dim() - 1]), (b, [b.dim() - 2]))
        if any(context.labels.varies(*each) for each in along):
            return None
    small_a, small_b = narrow(a).unsqueeze(-1), narrow(b).unsqueeze(-3)
    if math.prod(map(max, small_a.shape, small_b.shape)) > MOST:
        return None
    context.labels.unite(small_a, small_b)
    a, b = context.labels.unite_along(a, [a.dim() - 1]), context.labels.unite_along(b, [b.dim() - 2])
    (out,) = context.made
    found = context.labels.joined(a.expand(out.shape), b.expand(out.shape))
    added = context.argument("self") if name in ("addmm", "baddbmm") else None
    return [found if added is None else _met(context, [found, added], out.shape)]


MOST = 2**24
"""Pairs of labels that a product may unite."""


def _attention(context: _Context) -> Found:
    """`(n, heads, tokens, width)`: whole heads are cut; several heads of queries may share one of keys and values."""
    query, key, value = (context.of(context.step.arguments[name]) for name in ("query", "key", "value"))
    heads = [context.labels.unite_along(each, [-2 % each.dim(), -1 % each.dim()]) for each in (query, key, value)]
    times = query.shape[-3] // key.shape[-3]
    chosen, *others = heads
    for each in others:
        context.labels.unite(chosen, each.repeat_interleave(times, -3))
    mask = context.argument("attn_mask")
    if mask is not None:
        scores = torch.Size((*query.shape[:-1], key.shape[-2]))
        _met(context, [chosen.expand((*query.shape[:-2], 1, 1)), mask], scores)
    out = context.made[0]
    found = context.labels.joined(chosen, others[1].repeat_interleave(times, -3))
    return [found.expand(out.shape), *[None] * (len(context.made) - 1)]


def _layer_norm(context: _Context) -> Found:
    labels, shape = context.of(context.step.first), context.step.arguments["normalized_shape"]
    axes = list(range(labels.dim() - len(shape), labels.dim()))
    others = list(range(labels.dim() - len(shape)))
    if context.labels.varies(labels, axes) and context.settled:
        if context.labels.varies(labels, others):  # a norm of each head
            context.labels.unite_along(labels, axes)
        else:
            context.found.statistics.append(labels)
            if len(shape) == 1:
                context.count("normalized_shape", context.labels.unite_along(labels, others))
    tensors = [each for name in ("weight", "bias") if (each := context.argument(name)) is not None]
    return [_met(context, [labels, *tensors], labels.shape), None, None]


def _group_norm(context: _Context) -> Found:
    labels, groups = context.of(context.step.first), context.step.arguments["group"]
    others = [axis for axis in range(labels.dim()) if axis != 1]
    channels = context.labels.unite_along(labels, others).flatten()
    blocks = channels.view(groups, -1)
    context.count("num_channels", channels)
    if groups > 1 and groups >= blocks.shape[1]:  # the finer of two ways: whole groups
        context.count("num_groups", context.labels.unite_along(blocks, [1]))
    else:
        context.labels.unite_along(blocks, [0])
        context.found.statistics.append(labels)
    tensors = [each for name in ("weight", "bias") if (each := context.argument(name)) is not None]
    shape = (1, -1, *(1,) * (labels.dim() - 2))
    return [_met(context, [labels, *(each.view(shape) for each in tensors)], labels.shape), None, None]


def _batch_norm(context: _Context) -> Found:
    labels = context.of(context.step.first)
    shape = (1, -1, *(1,) * (labels.dim() - 2))
    tensors = [context.by_id[id(tensor)] for tensor in context.step.tensors[1:] if id(tensor) in context.by_id]
    found = _met(context, [labels, *(each.reshape(shape) for each in tensors)], labels.shape)
    return [found, *[None] * (len(context.made) - 1)]


def _prelu(context: _Context) -> Found:
    context.count("num_parameters", context.of(context.step.tensors[1]))
    return _pointwise(context)


_RULES: Mapping[str, Callable[[_Context], Found]] = {
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(RESHAPING, _reshape),
    **dict.fromkeys(MOVING, _move),
    **dict.fromkeys(AVERAGES, _average),
    **dict.fromkeys(SHARES, _shares),
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(("split", "split_with_sizes"), _parts),
    **dict.fromkeys(
        ("zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty"), _nothing
    ),
    **dict.fromkeys(("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"), _attention),
    "slice": _slice,
    "as_strided": _strided,
    "channel_shuffle": _shuffle,
    "native_channel_shuffle": _shuffle,
    "glu": _glu,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_prelu_kernel": _prelu,
}


def kept_statistics(step: Step, labels: Mapping[int, Tensor], gone: Tensor) -> Any:
    """Returns what an operator that averages over channels puts out where some count for nothing, else None.

    Args:
        step: the operator.
        labels: of the tensors that it reads, by their ids.
        gone: `(labels,)` which ones count for nothing.
    """
    inputs = step.first
    known = labels.get(id(inputs))
    norm = step.name in ("native_layer_norm", "native_group_norm")
    average = step.name in AVERAGES or (step.name in CHOICES and "dim" in step.arguments)
    if known is None or not (norm or average):
        return None
    axes = [inputs.dim() - 1] if step.name == "native_layer_norm" else [1] if norm else step.axes()
    lost = gone[known]
    for axis in axes:
        first = lost.movedim(axis, -1).flatten(0, -2)
        if not bool(first.any()) or bool((first != first[:1]).any()) or bool(first[0].all()):
            continue
        kept = (~first[0]).nonzero().flatten()
        if not norm:
            return _run(step, {"self": inputs.index_select(axis, kept)})
        return _kept_norm(step, axis, kept)
    return None


def _kept_norm(step: Step, axis: int, kept: Tensor) -> Any:
    arguments, inputs = step.arguments, step.first
    changed: dict[str, Any] = {"input": inputs.index_select(axis, kept).contiguous()}
    for name in ("weight", "bias"):
        if arguments.get(name) is not None:
            changed[name] = arguments[name].index_select(0, kept)
    if step.name == "native_layer_norm":
        changed["normalized_shape"] = [len(kept)]
    else:
        whole = torch.zeros(inputs.shape[1], dtype=torch.bool).index_fill_(0, kept, True).view(arguments["group"], -1)
        changed["C"] = len(kept)
        if bool((whole == whole[:, :1]).all()):  # whole groups
            changed["group"] = int(whole[:, 0].sum())
    result, *others = _run(step, changed)
    return (torch.zeros_like(inputs).index_copy_(axis, kept, result), *others)


def _run(step: Step, changed: Mapping[str, Any]) -> Any:
    return step.function(**{**step.arguments, **changed})
