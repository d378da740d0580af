"""Random plans as what the runtime executes for them, without compressing anything."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from plywise.compressors.modules.layers import groups_of, is_depthwise, out_channels, weight_of
from plywise.compressors.packing.trimmed_module import is_trimmed
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe, Stage
from plywise.compressors.statistics.channels import kept_count
from plywise.compressors.structure.filter_pruning import FilterPruning
from plywise.env.costs.chains import chain_of
from plywise.env.costs.latency import Chain
from plywise.env.network.channel_groups import NORMS, cut, cut_norm, trimmed
from plywise.env.network.menu import legal_recipes
from plywise.env.network.network import Network

Shapes = tuple[Mapping[str, Chain], Mapping[str, nn.Module]]
"""What runs: the chain of each layer, and other modules that have lost channels, by name."""


def random_plans(network: Network, count: int, seed: int = 0) -> Iterator[Plan]:
    """Yields plans over the whole range: of each, a random share computes on integers, is cut, or changes otherwise."""
    generator = np.random.default_rng(seed)
    legal = {layer.name: legal_recipes(layer, network.modules[layer.name]) for layer in network.layers}
    for _ in range(count):
        integers, cuts, others = generator.random(3)
        recipes = {}
        for name, menu in legal.items():
            wants = bool(generator.random() < integers)
            kind = "cut" if generator.random() < cuts else "other" if generator.random() < others / 2 else "none"
            same = [recipe for recipe in menu if (recipe.at(Stage.ACTIVATIONS) is not None) == wants] or menu
            fitting = [recipe for recipe in same if _kind(recipe) == kind] or same
            recipes[name] = fitting[int(generator.integers(len(fitting)))]
        yield Plan(network.name, recipes)


def shapes_of(network: Network, plan: Plan) -> Shapes:
    """Returns what the runtime executes for a plan of this network."""
    keep = first_channels(network, plan)
    inputs, outputs = cut(network.modules, network.groups, keep)
    chains = {}
    for name, (operation,) in network.operations.items():
        module = network.modules[name]
        left_out = len(outputs[name]) if name in outputs else weight_of(module).shape[0]
        if is_depthwise(module):
            left_in = left_out * groups_of(module) // out_channels(module)
        else:
            left_in = len(inputs[name]) if name in inputs else weight_of(module).shape[1] * groups_of(module)
        chains[name] = chain_of((operation,), plan[name], left_in, left_out, module)
    modules = trimmed(network.modules, network.groups, keep)
    norms = {name: kept for name, kept in outputs.items() if isinstance(network.modules[name], NORMS)}
    modules |= {name: cut_norm(network.modules[name], kept) for name, kept in norms.items()}
    return chains, modules


def trimmed_in(network: Network, model: nn.Module) -> dict[str, nn.Module]:
    """Returns the modules of a network, layers apart, that have lost channels in what it has become, by name."""
    layers = {layer.name for layer in network.layers}
    found = {name: module for name, module in model.named_modules() if name in network.modules and name not in layers}
    return {name: module for name, module in found.items() if is_trimmed(module, network.modules[name])}


def first_channels(network: Network, plan: Plan) -> dict[int, Tensor]:
    """Returns as many channels of each pruned group as the plan leaves: the first ones, for which ones is no matter."""
    keep = {}
    for layer in network.layers:
        technique = plan[layer.name].at(Stage.STRUCTURE)
        if isinstance(technique, FilterPruning) and layer.group is not None and layer.leads:
            group = network.groups[layer.group]
            count = kept_count(group.channels * group.unit, technique.ratio, group.unit) // group.unit
            keep[layer.group] = torch.arange(count)
    return keep


def _kind(recipe: Recipe) -> str:
    structure = recipe.at(Stage.STRUCTURE)
    return "none" if structure is None else "cut" if isinstance(structure, FilterPruning) else "other"
