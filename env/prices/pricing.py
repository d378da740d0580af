"""Builds the price table of a network: the recipes of each layer, what they cost on the device and what they lose."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors
from torch import nn

from plywise.compressors.errors import ModelError
from plywise.compressors.formats.weight_format import weight_format
from plywise.compressors.modules.layers import (
    WEIGHTED,
    bias_of,
    groups_of,
    is_depthwise,
    is_pointwise,
    out_channels,
    weight_matrices,
    weight_of,
)
from plywise.compressors.packing.packed_module import packed_size
from plywise.compressors.packing.packing import floats_size
from plywise.compressors.recipes.technique import Recipe, Stage
from plywise.compressors.statistics.channels import kept_count
from plywise.compressors.structure.filter_pruning import FilterPruning
from plywise.env.bank.bank import Bank
from plywise.env.costs.chains import chain_of, realised_chain
from plywise.env.costs.energy import energy_mj, tied_energy
from plywise.env.costs.latency import Chain
from plywise.env.costs.network_latency import NetworkLatency
from plywise.env.network.channel_groups import channels_in
from plywise.env.network.menu import is_uniform, legal_recipes, undominated
from plywise.env.network.network import Layer, Network
from plywise.env.network.operation import WEIGHTLESS
from plywise.env.prices.prices import LAYER_FEATURES, METRICS, RECIPE_FEATURES, Baseline, PriceTable
from plywise.env.prices.sensitivity import Sensitivity
from plywise.env.storage.timing_lock import working

KEEP_LEVELS = (1.0, 0.75, 0.5, 0.25)
"""Shares of a group's channels that the catalogue's pruning leaves."""

STORAGE_MARGIN = 1.003
"""Packed bytes are predicted to a few thousandths; what just holds a ceiling on paper has to hold it on disk."""

RANGES_BYTES = 20
"""Two ranges and their mark in the packed file."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of one compressed layer as a line over its shape, so that other channel counts can be priced.

    Attributes:
        per_weight: of a stored weight.
        per_output: of an output channel (bias, scale).
        fixed: the rest.
        total: of the module that was measured.
    """

    per_weight: float
    per_output: float
    fixed: float
    total: float

    @classmethod
    def of(cls, module: nn.Module, chain: Chain) -> "Sizes":
        """Splits the real packed bytes of a module, which the runtime executes as a chain."""
        leaves = [leaf for leaf in module.modules() if isinstance(leaf, WEIGHTED)]
        weights, outputs = _counts(chain)
        per_output = sum(map(_bytes_besides_weights, leaves)) / outputs
        size = packed_size(module)
        fixed = min(32.0, max(0.0, size - per_output * outputs))
        return cls((size - fixed - per_output * outputs) / weights, per_output, fixed, size)

    def bytes_of(self, chain: Chain) -> float:
        """Returns the bytes of the same recipe on a chain of other channel counts."""
        weights, outputs = _counts(chain)
        return STORAGE_MARGIN * (self.fixed + self.per_output * outputs + self.per_weight * weights)


def _counts(chain: Chain) -> tuple[int, int]:
    """Returns how many weights and rows of them a chain has."""
    shapes = [operation.weight_shape for operation in chain]
    return sum(map(math.prod, shapes)), sum(shape[0] for shape in shapes)


def _bytes_besides_weights(leaf: nn.Module) -> int:
    """Returns the bytes of a leaf's bias and of its format's scales."""
    bias, fmt = bias_of(leaf), weight_format(leaf)
    alongside = ([] if bias is None else [bias]) + ([] if fmt is None else list(fmt.tensors().values()))
    return sum(map(floats_size, alongside))


class Pricer:
    """Prices of one network on one device, put together step by step.

    Attributes:
        bank: of the network.
        recipes: for each layer, in order, what it is offered; `price` narrows it down.
    """

    def __init__(self, bank: Bank, whole: NetworkLatency) -> None:
        """Prepares; nothing is measured yet.

        Args:
            bank: of the network.
            whole: its latencies on the device.
        """
        self.bank = bank
        self.network = bank.network
        self.whole = whole
        self.latency = whole.latency
        self._sizes: dict[tuple[str, Recipe], Sizes] = {}
        self._chains: dict[tuple[str, Recipe, bool, int, int], Chain] = {}
        self._known: dict[Chain, float] = {}  # latencies
        self._refused: dict[tuple[str, Recipe], str] = {}  # by layer and recipe, why the device does not run it
        self.recipes: dict[str, tuple[Recipe, ...]] = {
            layer.name: self._runnable(legal_recipes(layer, self.network.modules[layer.name]))
            for layer in self.network.layers
        }

    def price(
        self,
        sensitivities: Mapping[str, Sensitivity],
        points_per_nat: float,
        bytes_outside: float,
        baseline: Baseline,
    ) -> PriceTable:
        """Returns the price table.

        Args:
            sensitivities: of each layer over `recipes[layer]`.
            points_per_nat: accuracy points lost for each nat of divergence.
            bytes_outside: of a plan's packed file, those that no layer accounts for.
            baseline: the original.

        Raises:
            ModelError: where the device does not run a layer as it is.
        """
        self._refuse()
        costs = {layer.name: self.costs(layer) for layer in self.network.layers}
        rows = {
            layer.name: self._picked(layer, costs[layer.name], sensitivities[layer.name])
            for layer in self.network.layers
        }
        return self._table(costs, rows, sensitivities, points_per_nat, bytes_outside, baseline)

    def _picked(self, layer: Layer, costs: NDArray[np.float64], sensitivity: Sensitivity) -> NDArray[np.int64]:
        """Returns the places of the recipes that a layer is offered, `(slots,)`, given all of its costs."""
        recipes = self.recipes[layer.name]
        usable = [place for place, recipe in enumerate(recipes) if (layer.name, recipe) not in self._refused]
        # What may be best in some plan: compared in all shapes that plans can leave the layer in, and only with what
        # does the same to other layers. A narrow layer alone pays for its changes of the number format; in a network
        # it may not.
        inner = slice(None) if layer.reads or layer.group is not None else slice(1)
        outer = slice(None) if layer.group is not None and not layer.leads else slice(1)
        prices = costs[:, usable, inner, outer].swapaxes(0, 1).reshape(len(usable), -1)
        prices = np.column_stack([prices, sensitivity.divergence[usable]])
        classes = [(_level(recipes[place]), recipes[place].at(Stage.ACTIVATIONS) is not None) for place in usable]
        always = [index for index, place in enumerate(usable) if is_uniform(recipes[place])]
        return np.array(usable)[undominated(prices, classes, always)]

    def _runnable(self, recipes: Iterable[Recipe]) -> tuple[Recipe, ...]:
        """Returns those recipes whose number formats the device has kernels for."""
        return tuple(recipe for recipe in recipes if self.latency.device.why_refused(recipe) is None)

    def _refuse(self) -> None:
        """Notes the recipes that the device does not run in some shape that plans may leave, and says so once.

        Raises:
            ModelError: where it does not run a layer as it is.
        """
        levels = range(len(KEEP_LEVELS))
        chains = {
            (layer.name, recipe, a, b): self._priced_chain(layer, recipe, a, b)
            for layer in self.network.layers
            for recipe in self.recipes[layer.name]
            for a in levels
            for b in levels
        }
        latencies = self._latencies(list(chains.values()))
        for (name, recipe, a, b), chain in chains.items():
            if np.isnan(latencies[chain]) and (recipe.techniques or (a, b) == (0, 0)):
                self._refused.setdefault((name, recipe), self.latency.why_refused(chain))
        for (name, recipe), reason in self._refused.items():
            if not recipe.techniques:
                raise ModelError(f"{self.latency.device.name} does not run {name} as it is: {reason}")
        self._tell_refused()

    def _tell_refused(self) -> None:
        if self._refused:
            (name, recipe), reason = next(iter(self._refused.items()))
            warnings.warn(
                f"{self.network.name}: {len(self._refused)} recipes are not offered, for {self.latency.device.name} "
                f"does not run them; the first is {recipe} on {name}: {reason}",
                stacklevel=2,
            )

    def costs(self, layer: Layer) -> NDArray[np.float64]:
        """Returns what all recipes of a layer cost, `(M, recipes, Q, Q)`; infinity for what the device does not run."""
        recipes, levels, units = self.recipes[layer.name], range(len(KEEP_LEVELS)), self.latency.device.energies
        asked = [self._priced_chain(layer, recipe, a, b) for recipe in recipes for a in levels for b in levels]
        latencies = self._latencies(asked)
        costs = np.full((len(METRICS), len(recipes), len(levels), len(levels)), np.inf)
        for place, recipe in enumerate(recipes):
            if (layer.name, recipe) in self._refused:
                continue
            size, uncut = self.sizes(layer, recipe), latencies[self._priced_chain(layer, recipe, 0, 0)]
            for a in levels:
                for b in levels:
                    chain = self._priced_chain(layer, recipe, a, b)
                    # A device that does not run the bare layer with fewer channels saves nothing by cutting them.
                    latency = latencies[chain] if np.isfinite(latencies[chain]) else uncut
                    storage = size.bytes_of(chain)
                    energy = energy_mj(_corrected(chain, recipe), units)
                    costs[:, place, a, b] = storage, layer.runs * latency, layer.runs * energy
        return costs

    def _table(
        self,
        costs: Mapping[str, NDArray[np.float64]],
        rows: Mapping[str, NDArray[np.int64]],
        sensitivities: Mapping[str, Sensitivity],
        points_per_nat: float,
        bytes_outside: float,
        baseline: Baseline,
    ) -> PriceTable:
        network, levels = self.network, len(KEEP_LEVELS)
        chosen = {name: [self.recipes[name][place] for place in picked] for name, picked in rows.items()}
        count, slots = len(network.layers), max(map(len, chosen.values()))
        cost = np.zeros((len(METRICS), count, slots, levels, levels), np.float32)
        legal = np.zeros((count, slots), bool)
        drop, error = np.zeros((count, slots), np.float32), np.zeros((count, slots), np.float32)
        level, integers = np.zeros((count, slots), np.int64), np.zeros((count, slots), bool)
        features = np.zeros((count, slots, len(RECIPE_FEATURES)), np.float32)
        for row, layer in enumerate(network.layers):
            found, picked = sensitivities[layer.name], rows[layer.name]
            offered = slice(len(picked))
            legal[row, offered] = True
            cost[:, row, offered] = costs[layer.name][:, picked]
            drop[row, offered] = points_per_nat * found.divergence[picked]
            error[row, offered] = found.output_error[picked]
            for slot, recipe in enumerate(chosen[layer.name]):
                level[row, slot] = _level(recipe)
                integers[row, slot] = recipe.at(Stage.ACTIVATIONS) is not None
                share = _share(self._priced_chain(layer, recipe, 0, 0), network.operations[layer.name])
                features[row, slot] = _recipe_features(recipe, integers[row, slot], error[row, slot], share)
        energy = tied_energy(network, self.latency.device.energies)
        fixed = np.array([bytes_outside, self.whole.overhead.rest + self.whole.tied, energy], np.float32)
        original = fixed + cost[:, :, 0, 0, 0].sum(1)
        original[0] = original_storage(network)
        return PriceTable(
            network=network.name,
            layers=tuple(layer.name for layer in network.layers),
            recipes=tuple(tuple(map(str, chosen[layer.name])) for layer in network.layers),
            legal=legal,
            cost=cost,
            drop=drop,
            output_error=error,
            keep_levels=np.array(KEEP_LEVELS, np.float32),
            in_share=self._in_share(),
            out_group=np.array([-1 if layer.group is None else layer.group for layer in network.layers], np.int64),
            leads=np.array([layer.leads for layer in network.layers]),
            recipe_level=level,
            integers=integers,
            nearest=self._nearest(),
            border=self._borders(),
            recipe_features=features,
            layer_features=self._layer_features(cost[0, :, 0, 0, 0]),
            fixed=fixed,
            original=original,
            accuracy=baseline.accuracy,
            chance=baseline.chance,
            samples=baseline.samples,
            refused=tuple((name, str(recipe), reason) for (name, recipe), reason in self._refused.items()),
        )

    def every_chain(self) -> list[Chain]:
        """Returns every chain whose latency the price table may ask for, each once."""
        levels = range(len(KEEP_LEVELS))
        chains = (
            self._priced_chain(layer, recipe, a, b)
            for layer in self.network.layers
            for recipe in self.recipes[layer.name]
            for a in levels
            for b in levels
        )
        return list(dict.fromkeys(chains))

    def _latencies(self, chains: Sequence[Chain]) -> dict[Chain, float]:
        new = [chain for chain in dict.fromkeys(chains) if chain not in self._known]
        alone = self.latency.milliseconds(new).tolist()
        self._known |= {
            chain: self.whole.overhead.in_place(chain, each) for chain, each in zip(new, alone, strict=True)
        }
        return self._known

    @working()
    def sizes_of(self, layer: Layer) -> dict[Recipe, Sizes]:
        """Returns the bytes of a layer under each recipe that it is offered, but for roundings of activations."""
        inner = dict.fromkeys(recipe.without(Stage.ACTIVATIONS) for recipe in self.recipes[layer.name])
        return {recipe: self.sizes(layer, recipe) for recipe in inner}

    def take_sizes(self, layer: str, sizes: Mapping[Recipe, Sizes]) -> None:
        """Takes over what another process has found by `sizes_of`."""
        self._sizes |= {(layer, recipe): found for recipe, found in sizes.items()}

    def sizes(self, layer: Layer, recipe: Recipe) -> Sizes:
        """Returns the bytes of a layer under a recipe of its own, nothing pruned before it; measured once."""
        base = recipe.without(Stage.ACTIVATIONS)  # the ranges of activations take a few bytes, the same everywhere
        if (layer.name, base) not in self._sizes:
            cut = base.at(Stage.STRUCTURE)
            pruned = isinstance(cut, FilterPruning) and layer.group is not None
            state = ((layer.group, cut),) if pruned else ()
            module = self.bank.entry(layer.name, base, state)  # type: ignore[arg-type]
            self._sizes[layer.name, base] = Sizes.of(module, realised_chain(module, layer))
        size = self._sizes[layer.name, base]
        extra = 0 if base == recipe else RANGES_BYTES
        return replace(size, fixed=size.fixed + extra, total=size.total + extra)

    def _priced_chain(self, layer: Layer, recipe: Recipe, in_level: int, out_level: int) -> Chain:
        """Returns the chain of a recipe; one that prunes sets the keep level of the outputs itself."""
        return self._chain(layer, recipe, in_level, _level(recipe) or out_level)

    def _chain(self, layer: Layer, recipe: Recipe, in_level: int, out_level: int) -> Chain:
        module = self.network.modules[layer.name]
        outputs, inputs = weight_of(module).shape[0], channels_in(module)
        if is_depthwise(module):
            multiplier = outputs // groups_of(module)
            outputs = self._left(outputs, self._groups_of_outputs(layer), max(in_level, out_level))
            inputs = outputs // multiplier
        else:
            inputs = self._left(inputs, self._inputs_by_group(layer), in_level)
            outputs = self._left(outputs, self._groups_of_outputs(layer), out_level)
        # Only what decides about shapes: thousands of chains are asked for, and most are the same.
        base = Recipe(tuple(t for t in recipe.techniques if t.stage in (Stage.STRUCTURE, Stage.ACTIVATIONS)))
        key = (layer.name, base, bool(recipe.techniques), inputs, outputs)
        if key not in self._chains:
            self._chains[key] = chain_of(self.network.operations[layer.name], recipe, inputs, outputs, module)
        return self._chains[key]

    def _left(self, channels: int, by_group: Mapping[int, int], level: int) -> int:
        """Returns how many of `channels` stay when all groups that they belong to are at a keep level."""
        if level == 0:  # not even rounded
            return channels
        for group, share in by_group.items():
            unit = self.network.groups[group].unit
            width = self.network.groups[group].channels * unit
            channels -= (width - kept_count(width, 1.0 - KEEP_LEVELS[level], unit)) * share // width
        return channels

    def _inputs_by_group(self, layer: Layer) -> dict[int, int]:
        groups = self.network.groups
        return {g: sum(s.local.numel() for s in groups[g].consumers if s.module == layer.name) for g in layer.reads}

    def _groups_of_outputs(self, layer: Layer) -> dict[int, int]:
        if layer.group is None:
            return {}
        sides = self.network.groups[layer.group].producers
        return {layer.group: sum(side.local.numel() for side in sides if side.module == layer.name)}

    def _in_share(self) -> NDArray[np.float32]:
        share = np.zeros((len(self.network.layers), max(1, len(self.network.groups))), np.float32)
        for row, layer in enumerate(self.network.layers):
            module = self.network.modules[layer.name]
            if is_depthwise(module) and layer.group is not None:
                share[row, layer.group] = 1.0
            for group, channels in self._inputs_by_group(layer).items():
                share[row, group] = channels / channels_in(module)
        return share

    def _nearest(self) -> NDArray[np.int64]:
        places = {layer.name: place for place, layer in enumerate(self.network.layers)}
        return np.array([places.get(self.whole.nearest[layer.name] or "", -1) for layer in self.network.layers])

    def _borders(self) -> NDArray[np.float32]:
        """Milliseconds in the original's shapes."""
        read = (math.prod(self.network.operations[layer.name][0].input_shape) for layer in self.network.layers)
        overhead = self.whole.overhead
        return np.array([overhead.border + overhead.number * count for count in read], np.float32)

    def _layer_features(self, storage: NDArray[np.float32]) -> NDArray[np.float32]:
        network = self.network
        macs = np.array([network.macs[layer.name] for layer in network.layers], float)
        rows = []
        for place, layer in enumerate(network.layers):
            module = network.modules[layer.name]
            values = {
                "is_linear": float(isinstance(module, nn.Linear)),
                "is_depthwise": float(is_depthwise(module)),
                "is_pointwise": float(is_pointwise(module)),
                "share_of_macs": macs[place] / macs.sum(),
                "share_of_storage": float(storage[place] / storage.sum()),
                "log_out_channels": np.log2(out_channels(module)) / 12,
                "log_in_features": np.log2(weight_matrices(module).shape[2]) / 12,
                "depth": place / len(network.layers),
            }
            rows.append([values[name] for name in LAYER_FEATURES])
        return np.array(rows, np.float32)


def original_storage(network: Network) -> float:
    """Returns the bytes of the original's file: weights in the precision that they were given in, headers included."""
    once: dict[int, str] = {}  # tensors that several modules share
    state = network.original.state_dict(keep_vars=True)
    for name, value in state.items():
        once.setdefault(id(value), name)
    stored = {name: state[name].detach().to(network.dtypes.get(name), copy=True) for name in once.values()}
    return float(len(save_tensors({name: value.contiguous() for name, value in stored.items()})))


def _level(recipe: Recipe) -> int:
    technique = recipe.at(Stage.STRUCTURE)
    if not isinstance(technique, FilterPruning):
        return 0
    return int(np.abs(np.array(KEEP_LEVELS) - (1.0 - technique.ratio)).argmin())


def _corrected(chain: Chain, recipe: Recipe) -> Chain:
    """Returns a chain with the biases that zeros and rounding give every leaf; for its latency they count for nothing.

    An embedding gets none.
    """
    if recipe.at(Stage.SPARSITY) is None and recipe.at(Stage.WEIGHTS) is None:
        return chain
    without = (*WEIGHTLESS, "embedding")
    return tuple(replace(operation, bias=operation.kind not in without) for operation in chain)


def _share(chain: Chain, original: Chain) -> float:
    """Returns the share of a layer's macs that are left, of an embedding, which has none, that of its weights."""
    macs = sum(operation.macs for operation in original)
    if macs:
        return sum(operation.macs for operation in chain) / macs
    stored, left = (sum(math.prod(operation.weight_shape) for operation in each) for each in (original, chain))
    return left / stored


def _recipe_features(recipe: Recipe, integer: bool, error: float, macs_share: float) -> list[float]:
    def setting(name: str, default: float) -> float:
        return next((float(t.settings()[name]) for t in recipe.techniques if name in t.settings()), default)

    structure = recipe.at(Stage.STRUCTURE)
    prunes = isinstance(structure, FilterPruning)
    values = {
        "is_identity": float(not recipe.techniques),
        "pruning_ratio": setting("ratio", 0.0) if prunes else 0.0,
        "rank_ratio": 0.0 if structure is None or prunes else max(0.0, 1.0 - macs_share),
        "sparsity": setting("sparsity", 0.0),
        "weight_bits": recipe.bits / 32,
        "activation_bits": 8 / 32 if integer else 1.0,
        "log_output_error": float(np.log10(max(error, 1e-10))) / 5,
    }
    return [values[name] for name in RECIPE_FEATURES]
