"""What the runtime executes for a layer: predicted from its recipe, or read off the compressed layer."""

from dataclasses import replace

import torch
from torch import nn

from plywise.compressors.modules.layers import WEIGHTED, is_recurrent, weight_of
from plywise.compressors.recipes.technique import Recipe, Stage
from plywise.compressors.statistics.channels import rebuilt
from plywise.env.costs.latency import Chain
from plywise.env.network.network import Layer
from plywise.env.network.operation import Operation, Shape, operations


def chain_of(original: Chain, recipe: Recipe, inputs: int, outputs: int, layer: nn.Module) -> Chain:
    """Returns what the runtime executes for a layer of other channel counts under a recipe.

    Args:
        original: the operation of the layer.
        recipe: its pruning is taken as done: `outputs` are those that stay.
        inputs, outputs: channels that are left.
        layer: the original layer.
    """
    (operation,) = original
    integer = recipe.at(Stage.ACTIVATIONS) is not None
    adds = operation.bias or (bool(recipe.techniques) and not isinstance(layer, nn.Embedding))
    operation = replace(operation, integer=integer, bias=adds)
    operation = operation.resized(in_channels=inputs, out_channels=None if operation.depthwise else outputs)
    structure = recipe.at(Stage.STRUCTURE)
    if structure is None or is_recurrent(layer):
        return (operation,)
    weight = torch.empty(outputs, inputs // operation.groups, *weight_of(layer).shape[2:], device="meta")
    bias = None if isinstance(layer, nn.Embedding) else torch.empty(outputs, device="meta")
    cut = rebuilt(layer, weight, bias, operation.groups)
    return operations(structure.on_cut(layer, cut).outline(cut), operation.input_shape, integer)


def run_on(chain: Chain, shape: Shape) -> Chain:
    """Returns what a chain is where it runs on an input of another shape, without the batch; channels stay its own."""
    found: list[Operation] = []
    for operation in chain:
        if found:
            reads = found[-1].input_shape if operation.alongside else found[-1].output_shape
        elif operation.kind == "embedding":
            reads = shape
        elif operation.kind in ("linear", "features"):
            reads = (*shape[:-1], operation.in_channels)
        else:
            reads = (operation.in_channels, *shape[1:])
        found.append(replace(operation, input_shape=reads))
    return tuple(found)


def realised_chain(module: nn.Module, layer: Layer) -> Chain:
    """Returns what the runtime executes for a compressed layer in the shapes that it really sees."""
    first = next(leaf for leaf in module.modules() if isinstance(leaf, WEIGHTED))
    if isinstance(first, nn.Embedding):
        return operations(module, layer.input_shape)
    if isinstance(first, nn.Linear):
        chain = operations(module, (*layer.input_shape[:-1], first.in_features))
        whole = replace(chain[0], out_channels=chain[-1].out_channels, bias=True)
        return (whole,) if layer.recurrent else chain
    return operations(module, (first.in_channels, *layer.input_shape[1:]))
