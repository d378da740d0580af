"""A trained network as the walk sees it: layers in execution order and the channels they share."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.errors import ModelError
from plywise.compressors.modules.layers import WEIGHTED, is_recurrent
from plywise.compressors.modules.own_forward import is_own
from plywise.compressors.modules.plain_layers import with_plain_layers
from plywise.compressors.modules.projected_attention import refusal, with_projections
from plywise.compressors.recipes.technique import Recipe, Stage
from plywise.compressors.structure.filter_pruning import FilterPruning
from plywise.env.network.calls import Call, calls_in
from plywise.env.network.channel_groups import ChannelGroup
from plywise.env.network.folding import fold_batch_norms
from plywise.env.network.graph import Graph
from plywise.env.network.group_finding import find_groups
from plywise.env.network.ignored import left_alone
from plywise.env.network.operation import Operation, operations
from plywise.env.network.preparation import evaluating, prepare
from plywise.env.network.shortcuts import Shortcut, find_shortcuts
from plywise.env.task.batch import Batch, as_studied, items_in, mapped, shapes_of, tensors_in
from plywise.env.task.forward import Forward, Run, rule_for
from plywise.env.task.interface import Interface
from plywise.env.task.outputs import floats_in
from plywise.env.task.samples import is_image, laid_out


@dataclass(frozen=True)
class Layer:
    """One compressible layer.

    Attributes:
        name: dotted name.
        input_shape, output_shape: at batch 1, without the batch dimension.
        relu: range `(low, high)` of the ReLU that directly follows, or None.
        group: index of the channel group of its outputs, None where they cannot be cut.
        leads: whether it decides for that group.
        reads: indices of the groups that its input channels come from.
        uncut: why its output channels cannot be cut, None where they can.
        recurrent: whether it is a matrix of a recurrence, whose kernel takes it as one whatever it is stored as.
        runs: how often it runs for one item, in units of `input_shape`.
        shares: names of modules that have the same weight, which become what it becomes.
    """

    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    relu: tuple[float, float] | None
    group: int | None
    leads: bool
    reads: tuple[int, ...]
    uncut: str | None
    recurrent: bool = False
    runs: float = 1.0
    shares: tuple[str, ...] = ()

    def unsupported(self, recipe: Recipe) -> str | None:
        """Returns why a layer with these neighbours cannot take a recipe, whatever its own kind."""
        if not self.shares:
            return None
        change = [each.name for each in recipe.techniques if each.stage not in (Stage.SPARSITY, Stage.WEIGHTS)]
        return f"{change[0]}: {', '.join(self.shares)} has the same weight, whose shape must stay" if change else None


@dataclass(frozen=True, eq=False)
class Network:
    """A network ready to be compressed; `Network.of` builds it.

    Attributes:
        name: what to call it.
        original: a copy of what was given, see `preparation.py`; never changed.
        model: the same function with BatchNorms merged into the layers before them and torch's attention taken apart
            into linear layers.
        graph: one forward pass of `model` on `example`.
        layers: the compressible ones, in execution order.
        groups: channels that are cut together.
        tied: layers that have the weight of one of `layers`, and become what that becomes.
        skipped: for modules with weights that take no recipe of their own, the reason.
        example: a small batch.
        forward: runs a network on a batch.
        memory_format: in which `model` takes its inputs: images with their channels last where it can, which is faster.
        notes: what `original` has other than what was given, a sentence each.
        dtypes: which floats its parameters and buffers were, by name, where not float32.
    """

    name: str
    original: nn.Module
    model: nn.Module
    graph: Graph
    layers: tuple[Layer, ...]
    groups: tuple[ChannelGroup, ...]
    tied: tuple[Layer, ...]
    skipped: Mapping[str, str]
    example: Batch
    forward: Forward
    memory_format: torch.memory_format
    notes: tuple[str, ...]
    dtypes: Mapping[str, torch.dtype]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example: Batch,
        name: str = "network",
        forward: Forward | None = None,
        ignored: Sequence[str | type] = (),
    ) -> "Network":
        """Finds the layers and channel groups of `model`.

        Args:
            model: any network; left untouched.
            example: a few real inputs.
            name: what to call it in plans and reports.
            forward: runs it on a batch; by the rule of `rule_for` where None.
            ignored: layers to leave as they are: names, patterns of names, types and names of types.

        Raises:
            ModelError: if the network does not run on `example` or has nothing to compress.
            ConfigurationError: if a part of `ignored` fits no module.
        """
        own = prepare(model)
        given, model, example = model, own.model, as_studied(example)
        prepared = attending = with_projections(model)
        forward = rule_for(model, example) if forward is None else forward

        def run(network: nn.Module) -> Any:
            return forward(network, mapped(example, Tensor.clone))  # a forward may write over its inputs

        try:
            prepared = with_plain_layers(attending, run)
            calls = calls_in(Graph.of(prepared, run))
        except Exception as error:  # a user's forward may raise anything
            raise ModelError(
                f"{name} does not run on {shapes_of(example)}: {error}. Check that the data fit the network (channels, "
                "height, width, names of entries)."
            ) from error
        if own.hooked and not own.dtypes:
            with evaluating(given), torch.no_grad():
                if not _alike(run(model), run(given)):
                    raise ModelError(
                        f"{name} computes something else without the hooks of {', '.join(own.hooked)}, which a file "
                        "cannot hold; write what they do into the forward"
                    )
        if attending is not model:
            _check_same(model, prepared, run, name)
        folded = fold_batch_norms(prepared, calls)
        graph = Graph.of(folded, run)
        calls = calls_in(graph)
        usable, skipped, shares = _usable(folded, calls, left_alone(folded, ignored))
        if not usable:
            reasons = "; ".join(map(": ".join, skipped.items())) or "it has no weights"
            raise ModelError(f"{name} has no layer that can be compressed: {reasons}")
        groups, uncut = find_groups(folded, run, [call.name for call in usable if call.name not in shares])
        uncut |= {name: f"{', '.join(others)} has the same weight" for name, others in shares.items()}
        produced = {side.module: index for index, group in enumerate(groups) for side in group.producers}
        layers = tuple(
            Layer(
                call.name,
                call.input_shape,
                call.output_shape,
                call.relu,
                produced.get(call.name),
                call.name in {group.leader for group in groups},
                tuple(i for i, group in enumerate(groups) if any(s.module == call.name for s in group.consumers)),
                uncut.get(call.name),
                recurrent := is_recurrent(folded.get_submodule(call.name)),
                1.0 if recurrent else _runs(call, items_in(example)),
                shares.get(call.name, ()),
            )
            for call in usable
        )
        followers = {other for others in shares.values() for other in others}
        tied = tuple(
            Layer(
                call.name,
                call.input_shape,
                call.output_shape,
                call.relu,
                group=None,
                leads=False,
                reads=(),
                uncut=skipped[call.name],
                runs=_runs(call, items_in(example)),
            )
            for call in _merged(calls).values()
            if call.name in followers
        )
        memory_format = _memory_format(folded, example, forward)
        return cls(
            name,
            model,
            folded,
            graph,
            layers,
            tuple(groups),
            tied,
            skipped,
            example,
            forward,
            memory_format,
            own.notes,
            own.dtypes,
        )

    def run(self, model: nn.Module) -> Any:
        """Returns the outputs of a network on the example, of which it gets a copy."""
        return self.forward(model, mapped(self.example, Tensor.clone))

    @cached_property
    def interface(self) -> Interface:
        """How the model is called on the example, and what it returns.

        Raises:
            ModelError: where it is called several times, or not itself but in parts.
        """
        return Interface.of(self.model, self.forward, mapped(self.example, Tensor.clone))

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Modules of `model` by dotted name."""
        return dict(self.model.named_modules())

    @cached_property
    def operations(self) -> dict[str, tuple[Operation, ...]]:
        """What each layer runs in the original network, by name."""
        return {layer.name: operations(self.modules[layer.name], layer.input_shape) for layer in self.layers}

    @cached_property
    def tied_operations(self) -> dict[str, tuple[Operation, ...]]:
        """What the tied layers run, by name; their recipes do not change it."""
        return {layer.name: operations(self.modules[layer.name], layer.input_shape) for layer in self.tied}

    @cached_property
    def macs(self) -> dict[str, int]:
        """Multiply-adds of each layer for one input, by name, the tied ones among them."""
        runs = {layer.name: layer.runs for layer in (*self.layers, *self.tied)}
        return {
            name: round(runs[name] * sum(operation.macs for operation in chain))
            for name, chain in (self.operations | self.tied_operations).items()
        }

    @cached_property
    def shortcuts(self) -> Mapping[str, Shortcut]:
        """What is added to the outputs of a layer, by its name."""
        return find_shortcuts(self.graph, {layer.name for layer in self.layers})

    def unsupported(self, name: str, recipe: Recipe) -> str | None:
        """Returns why the layer of a name cannot take a recipe, or None where it can."""
        layer = next(layer for layer in self.layers if layer.name == name)
        technique = recipe.at(Stage.STRUCTURE)
        if isinstance(technique, FilterPruning) and not layer.leads:
            if layer.group is None:
                return f"{technique.name}: {layer.uncut or 'its channels cannot be cut'}"
            leader = self.groups[layer.group].leader
            return f"{technique.name}: its channels follow {leader!r}, which decides for both"
        return layer.unsupported(recipe) or recipe.unsupported(self.modules[name])


def _check_same(model: nn.Module, prepared: nn.Module, run: Run, name: str) -> None:
    with torch.no_grad():
        same = _alike(run(prepared), run(model))
    if not same:
        raise ModelError(
            f"{name} gives other outputs once its attention is taken apart into linear layers. Where nn."
            "TransformerEncoder gets a mask of padding, build it with enable_nested_tensor=False: else torch puts "
            "zeros where tokens are masked, in inference only. Write any other attention with nn.Linear"
        )


def _alike(found: Any, expected: Any) -> bool:
    pairs = zip(floats_in(found), floats_in(expected), strict=True)
    return all(a.shape == b.shape and _close(a, b) for a, b in pairs if b.numel())


def _close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def _memory_format(model: nn.Module, example: Batch, forward: Forward) -> torch.memory_format:
    """Returns channels last for networks over images that give the same outputs so."""
    if not any(map(is_image, tensors_in(example))):
        return torch.contiguous_format
    with torch.no_grad():
        try:
            same = _alike(forward(model, laid_out(example, torch.channels_last)), forward(model, example))
        except Exception:  # a user's forward may raise anything: `view`, for one, refuses other strides
            return torch.contiguous_format
    return torch.channels_last if same else torch.contiguous_format


def _runs(call: Call, items: int) -> float:
    """Returns how often a layer runs for an item, also where rows of one, such as windows, lie along the batch."""
    return max(1.0, call.numbers / (items * max(1, math.prod(call.input_shape))))


def _merged(calls: Sequence[Call]) -> dict[str, Call]:
    """Returns what each module sees in all of its runs, by name in the order of their first; empty ones left out."""
    found: dict[str, Call] = {}
    for call in calls:
        if call.numbers:
            first = found.setdefault(call.name, replace(call, numbers=0))
            first.numbers += call.numbers
            first.relu = first.relu if first.relu == call.relu else None
    return found


def _shared_weights(model: nn.Module, order: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Returns the names of the modules that share their weight with others, by that of the one which runs first."""
    by_weight: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            by_weight.setdefault(id(weight), []).append(name)
    found = {}
    for names in by_weight.values():
        first = next((name for name in order if name in names), None)
        if len(names) > 1 and first is not None:
            found[first] = tuple(name for name in names if name != first)
    return found


def _can_share(leader: nn.Module, followers: Sequence[nn.Module]) -> bool:
    """Returns whether layers can have one compressed weight: it means the same to all of them."""
    kinds = {type(leader), *map(type, followers)}
    if any(is_own(module) or is_recurrent(module) for module in (leader, *followers)):
        return False
    # An embedding takes fewer formats than a linear layer, so it must be the one that decides.
    return len(kinds) == 1 or (kinds == {nn.Embedding, nn.Linear} and isinstance(leader, nn.Embedding))


def _usable(
    model: nn.Module, calls: list[Call], ignored: Collection[str]
) -> tuple[list[Call], dict[str, str], dict[str, tuple[str, ...]]]:
    """Splits modules with weights into those that can be compressed and the others with their reasons.

    Returns:
        What the first see, the reasons of the others, and for those of the first whose weight others share as well,
        by name, the names of these.
    """
    times = Counter(call.name for call in calls)
    by_name = _merged(calls)
    shared = _shared_weights(model, by_name)
    owners = Counter(id(value) for module in model.modules() for value in module._parameters.values())
    shares = {
        name: others
        for name, others in shared.items()
        if _can_share(model.get_submodule(name), [model.get_submodule(other) for other in others])
        and not any(other in ignored for other in (name, *others))
    }
    followers = {other: name for name, others in shares.items() for other in others}
    usable: list[Call] = []
    skipped: dict[str, str] = {}
    for name, module in model.named_modules():
        if name in ignored:
            skipped[name] = "left as it is, as asked"
        elif name in followers:
            skipped[name] = f"has the weight of {followers[name]!r} and becomes what that becomes"
        elif (reason := refusal(module)) is not None:
            skipped[name] = reason
        if any(name == whole or name.startswith(f"{whole}.") for whole in skipped):
            continue  # of an attention the output projection, which it uses without calling it
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        if is_own(module):
            skipped[name] = (
                f"{type(module).__name__} is a layer of the user's own that does more than to run one plain layer with "
                "its own weights, which it shares with none"
            )
            continue
        if any(True for _ in module.children()):
            continue
        if not isinstance(module, WEIGHTED):
            skipped[name] = f"{type(module).__name__}: no technique for this kind of layer"
        elif isinstance(module, nn.Embedding) and module.max_norm is not None:
            skipped[name] = "scales its vectors while it runs (max_norm)"
        elif times[name] == 0:
            skipped[name] = "it is never called: the network uses its weights directly, or in training only"
        elif name not in by_name:
            skipped[name] = "no input of the example reaches it (it is called on empty batches)"
        elif times[name] > 1 and is_recurrent(module):
            skipped[name] = f"runs {times[name]} times in one forward pass"
        elif owners[id(module.weight)] > 1 and name not in shares:
            skipped[name] = "shares its weights with another layer"
        elif not torch.is_floating_point(module.weight):
            skipped[name] = f"weights of type {module.weight.dtype}"
        else:
            usable.append(by_name[name])
    order = list(by_name)
    usable.sort(key=lambda call: order.index(call.name))
    return usable, skipped, {name: others for name, others in shares.items() if name in {call.name for call in usable}}
