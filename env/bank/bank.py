"""Every (layer, recipe) compressed once, in the shapes that upstream choices give; plans are stitched from them."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import Tensor, nn

from plywise.compressors.errors import ConfigurationError, UnsupportedLayerError
from plywise.compressors.formats.tied_weight import tied
from plywise.compressors.modules.assembly import assemble, copied
from plywise.compressors.modules.layers import is_depthwise
from plywise.compressors.modules.static_quantized import join
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe, Stage
from plywise.compressors.statistics.channels import keep_inputs, keep_outputs, kept_channels
from plywise.compressors.statistics.statistics import LayerStatistics
from plywise.compressors.structure.filter_pruning import FilterPruning
from plywise.env.bank.bank_folder import BankFolder
from plywise.env.bank.repair import FULL, Repair, repair
from plywise.env.bank.repair_target import Target, find_targets
from plywise.env.calibration.calibration import Calibration
from plywise.env.network.channel_groups import NORMS, cut, cut_norm, trimmed
from plywise.env.network.network import Layer, Network
from plywise.env.storage.memory import ceiling_of_layers

PREPARED = 4
"""Refitted layers kept with their statistics: all stages and recipes of one layer ask for the same few in a row."""

State = tuple[tuple[int, FilterPruning], ...]
"""Which channel groups (by index) are pruned and in which way, sorted."""


@dataclass(frozen=True)
class Stitched:
    """A plan put together.

    Attributes:
        model: the compressed network.
        replaced: the modules in it that are not the original's, by name.
    """

    model: nn.Module
    replaced: Mapping[str, nn.Module]


class Bank:
    """Compressed layers of one network, made on demand and kept.

    Attributes:
        network: what is compressed.
        calibration: its statistics.
        ceiling: bytes of weights that are kept in memory.
        repair: of the plans that are put together.
    """

    def __init__(
        self,
        network: Network,
        calibration: Calibration,
        folder: BankFolder | None = None,
        repair: Repair = FULL,
    ) -> None:
        """Starts empty.

        Args:
            network: what is compressed.
            calibration: its statistics.
            folder: where entries outlive the process, if anywhere.
            repair: of the plans that are put together.
        """
        self.network = network
        self.calibration = calibration
        self.repair = repair
        self._folder = folder
        self._entries: OrderedDict[tuple[str, Recipe, State], nn.Module] = OrderedDict()
        self._bytes, self.ceiling = 0, ceiling_of_layers()
        self._layers = {layer.name: layer for layer in network.layers}
        self._prepared = lru_cache(PREPARED)(self._prepare)
        self._targets = lru_cache(2)(self._find_targets)
        self._batch = lru_cache(2)(calibration.samples.joined)

    def state(self, plan: Plan) -> State:
        """Returns what a plan prunes, in the form that entries are kept under.

        Raises:
            ConfigurationError: where the plan is not one of this network, or prunes a layer that does not decide.
        """
        plan.check(tuple(self._layers))
        found = []
        for layer in self.network.layers:
            technique = plan[layer.name].at(Stage.STRUCTURE)
            if not isinstance(technique, FilterPruning):
                continue
            if layer.group is None or not layer.leads:
                reason = self.network.unsupported(layer.name, plan[layer.name])
                raise ConfigurationError(
                    f"layer {layer.name!r} cannot take {technique}: {reason}; choose another recipe for it"
                )
            found.append((layer.group, technique))
        return tuple(sorted(found, key=lambda pair: pair[0]))

    def check(self, plan: Plan) -> State:
        """Returns the state of a plan that can be stitched.

        Raises:
            ConfigurationError: where the plan is not one of this network, or prunes a layer that does not decide.
            UnsupportedLayerError: where a recipe cannot be used on its layer.
        """
        state = self.state(plan)
        for name, recipe in plan.items():
            reason = self._layers[name].unsupported(recipe) or recipe.unsupported(self.network.modules[name])
            if reason is not None:
                raise UnsupportedLayerError(f"layer {name!r} cannot take {recipe}: {reason}; choose another recipe")
        return state

    def kept(self, state: State) -> dict[int, Tensor]:
        """Returns the sorted indices of the channels that stay, for each pruned group."""
        found = {}
        for index, pruning in state:
            statistics = self.calibration.statistics[self.network.groups[index].leader]
            kept = kept_channels(statistics.importance[pruning.importance], pruning.ratio, statistics.root)
            found[index] = torch.unique(self.network.groups[index].root[kept])
        return found

    def entry(self, name: str, recipe: Recipe, state: State = ()) -> nn.Module:
        """Returns the compressed layer; shared between callers, so copy before changing it.

        Args:
            name: of the layer.
            recipe: what to do to it; a `filter_pruning` on a follower is not allowed.
            state: pruned groups; those that do not touch the layer do not matter.
        """
        layer = self._layers[name]
        touching = tuple(
            (g, pruning) for g, pruning in state if g in layer.reads or (g == layer.group and not layer.leads)
        )
        if not recipe.techniques and not touching:
            return self.network.modules[name]
        key = (name, recipe, touching)
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        module = self._stored_or_made(layer, recipe, touching)
        self._entries[key] = module
        self._bytes += _size(module)
        while self._bytes > self.ceiling and len(self._entries) > 1:
            self._bytes -= _size(self._entries.popitem(last=False)[1])
        return module

    def prepared(self, name: str, state: State) -> nn.Module:
        """Returns the uncompressed layer with the channels that the state leaves, refitted."""
        layer = self._layers[name]
        return self._prepared(layer, tuple(each for each in state if each[0] in layer.reads or each[0] == layer.group))[
            0
        ]

    def statistics(self, name: str, state: State) -> LayerStatistics:
        """Returns what calibration saw at a layer, of the input channels that the state leaves."""
        layer = self._layers[name]
        narrowed = layer.reads
        if is_depthwise(self.network.modules[name]) and layer.group is not None:  # it reads what its group leaves
            narrowed = (*narrowed, layer.group)
        return self._prepared(layer, tuple((g, pruning) for g, pruning in state if g in narrowed))[1]

    def stitch(
        self,
        plan: Plan,
        settings: Repair | None = None,
        known: Mapping[str, nn.Module] = MappingProxyType({}),
        through: Callable[[nn.Module], nn.Module] = lambda model: model,
    ) -> Stitched:
        """Puts a plan together and repairs it.

        Layers that the plan leaves as they are, behind the first that it does not, take part in it: they make up for
        much of what is lost before them.

        Args:
            plan: a recipe for each layer.
            settings: the repair, where it is not the bank's.
            known: modules, by name, that were repaired before behind the same recipes; they are taken as they are.
            through: makes of the network the one that the calibration inputs run through.

        Raises:
            ConfigurationError: where the plan is not one of this network, or prunes a layer that does not decide.
            UnsupportedLayerError: where a recipe cannot be used on its layer.
        """
        settings = self.repair if settings is None else settings
        state = self.check(plan)
        keep = self.kept(state)
        network = self.network
        outputs = cut(network.modules, network.groups, keep)[1]
        replaced: dict[str, nn.Module] = {}
        behind = False  # a layer that the plan changes
        for layer in network.layers:
            touched = any(g in layer.reads or g == layer.group for g, _ in state)
            changed = bool(plan[layer.name].techniques) or touched
            behind = behind or changed
            if layer.name not in known and (changed or (behind and settings)):
                replaced[layer.name] = copied(self.entry(layer.name, plan[layer.name], state))
        for name in outputs:
            if name not in known and isinstance(network.modules[name], NORMS):
                replaced[name] = cut_norm(network.modules[name], outputs[name])
        every = {**replaced, **known}
        every |= {
            other: tied(network.modules[other], every[layer.name])
            for layer in network.layers
            for other in layer.shares
            if layer.name in every
        }
        for name, source in self.calibration.sources.items():
            if name in replaced and source in every:
                join(every[source], replaced[name])
        model = assemble(network.model, {**trimmed(network.modules, network.groups, keep), **every})
        if replaced and settings:
            found, batch = self._targets(settings.inputs), self._batch(settings.inputs)
            # A weight that others have as well is right for all of them as it is.
            shared = {layer.name for layer in network.layers if layer.shares}
            own = {name: each for name, each in replaced.items() if name not in shared}
            targets = {name: found[name].of(outputs[name]) if name in outputs else found[name] for name in own}
            repair(through(model), lambda model: network.forward(model, batch), targets, own, settings)
        return Stitched(model, every)

    def _find_targets(self, inputs: int) -> dict[str, Target]:
        return find_targets(self.network, self._batch(inputs))

    def _stored_or_made(self, layer: Layer, recipe: Recipe, touching: State) -> nn.Module:
        # What wraps the layer in roundings costs less than to read it.
        if self._folder is None or recipe.at(Stage.ACTIVATIONS) is not None:
            return self._made(layer, recipe, touching)
        original, key = self.network.modules[layer.name], f"{layer.name}: {recipe}; {touching}"
        found = self._folder.get(key, original)
        if found is None:
            found = self._made(layer, recipe, touching)
            self._folder.put(key, original, found)
        return found

    def _made(self, layer: Layer, recipe: Recipe, touching: State) -> nn.Module:
        module, statistics = self._prepared(layer, touching)
        if not recipe.techniques:
            return module
        # Recipes that begin alike share their first stages: the costly fits of structures are done once.
        inner = self.entry(layer.name, Recipe(recipe.techniques[:-1]), touching)
        technique = recipe.techniques[-1]
        if len(recipe.techniques) == 1:
            technique = technique.on_cut(self.network.modules[layer.name], module)
        return technique.compress(inner, statistics)

    def _prepare(self, layer: Layer, touching: State) -> tuple[nn.Module, LayerStatistics]:
        module, statistics = self.network.modules[layer.name], self.calibration.statistics[layer.name]
        if not touching:
            return module, statistics
        inputs, outputs = cut(self.network.modules, self.network.groups, self.kept(touching), [layer.name])
        if layer.name in inputs and not is_depthwise(module):
            module, statistics = keep_inputs(module, statistics, inputs[layer.name])
        if layer.name in outputs:
            module, statistics = keep_outputs(module, statistics, outputs[layer.name])
        return module, statistics


def _size(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
