"""Networks compressed in shape only: what a plan runs, without fitting any weight. Time does not depend on weights."""

import torch
from torch import nn

from plywise.compressors.formats.weight_format import UniformFormat, set_weight_format
from plywise.compressors.modules.assembly import assemble
from plywise.compressors.modules.grouped_linear import GroupedLinear
from plywise.compressors.modules.layers import WEIGHTED, bias_of, groups_of, is_depthwise, weight_of
from plywise.compressors.modules.static_quantized import ActivationRange, StaticQuantized
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe, Stage
from plywise.compressors.statistics.channels import rebuilt
from plywise.env.costs.trial_graphs import first_channels
from plywise.env.network.channel_groups import NORMS, cut, cut_norm, trimmed
from plywise.env.network.network import Layer, Network

STEP = 0.02


def hollow(network: Network, plan: Plan) -> nn.Module:
    """Returns the network in the shapes and formats of a plan; what it computes means nothing."""
    keep = first_channels(network, plan)
    inputs, outputs = cut(network.modules, network.groups, keep)
    replaced = trimmed(network.modules, network.groups, keep)
    for layer in network.layers:
        if plan[layer.name].techniques or layer.name in inputs or layer.name in outputs:
            small = _cut(network.modules[layer.name], inputs.get(layer.name), outputs.get(layer.name))
            whole = network.modules[layer.name]
            replaced[layer.name] = _shaped(layer, whole, small, plan[layer.name]).eval()
    for name in outputs:
        if isinstance(network.modules[name], NORMS):
            replaced[name] = cut_norm(network.modules[name], outputs[name])
    return assemble(network.model, replaced).eval()


def _cut(module: nn.Module, inputs: torch.Tensor | None, outputs: torch.Tensor | None) -> nn.Module:
    weight, bias, groups = weight_of(module), bias_of(module), groups_of(module)
    if outputs is not None:
        weight, bias = weight[outputs], None if bias is None else bias[outputs]
        groups = len(outputs) if is_depthwise(module) else groups
    if inputs is not None and not is_depthwise(module):
        weight = weight[:, : len(inputs) // groups]
    return rebuilt(module, weight, torch.zeros(len(weight)) if bias is None else bias, groups)


def _shaped(layer: Layer, whole: nn.Module, module: nn.Module, recipe: Recipe) -> nn.Module:
    structure = recipe.at(Stage.STRUCTURE)
    shaped = module if structure is None else structure.on_cut(whole, module).outline(module)
    parts = list(shaped) if isinstance(shaped, nn.Sequential) else [shaped]
    for part in parts:
        for name, value in list(part.named_parameters(recurse=False)):
            if value.is_meta:
                setattr(part, name, nn.Parameter(torch.randn(value.shape) * STEP, requires_grad=False))
    if recipe.at(Stage.ACTIVATIONS) is not None:
        parts = [_rounded(part, part is parts[-1] and layer.relu is not None) for part in parts]
    return nn.Sequential(*parts) if isinstance(shaped, nn.Sequential) else parts[0]


def _rounded(part: nn.Module, relu: bool) -> nn.Module:
    if not isinstance(part, WEIGHTED) or isinstance(part, GroupedLinear):
        return part
    weight = weight_of(part)
    scale = (weight.flatten(1).abs().amax(1) / 63).clamp_min(1e-6)
    set_weight_format(part, UniformFormat(7, scale, torch.full_like(scale, 64.0)), weight)
    return StaticQuantized(part, ActivationRange(STEP, 128), ActivationRange(STEP, 0 if relu else 128))
