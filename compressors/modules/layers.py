"""The view that techniques share of a layer: kinds, and weights as groups of matrices.

Every weight is seen as that of the ordinary layer that computes the same: `(out, in / groups, *kernel)`. A transposed
convolution, which torch holds inputs first, is one over its input with zeros between the positions. An embedding is a
table whose rows are its outputs: each row is picked as it is, so rows are compressed like output channels.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.modules.grouped_linear import GroupedLinear

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, nn.Embedding)
"""Layer types that techniques compress."""


def mark_recurrent(layer: nn.Linear) -> nn.Linear:
    """Marks a layer, and returns it, as one whose weights a kernel for recurrences takes, which never calls it."""
    layer.__dict__["recurrent"] = True
    return layer


def is_recurrent(layer: nn.Module) -> bool:
    """Returns whether a layer has been marked by `mark_recurrent`."""
    return "recurrent" in layer.__dict__


def weight_of(layer: nn.Module) -> Tensor:
    """Returns the weight of a layer, `(out, in / groups, *kernel)`, `(out, in)` or `(rows, width)`, detached."""
    weight = layer.weight
    assert isinstance(weight, Tensor), f"{type(layer).__name__} has no weight"
    weight = weight.detach()
    return _swapped(weight, layer.groups) if isinstance(layer, TRANSPOSED) else weight


def native_weight(layer: nn.Module, weight: Tensor) -> Tensor:
    """Returns what torch wants as the weight of a layer for one in the form of `weight_of`."""
    return _swapped(weight, layer.groups) if isinstance(layer, TRANSPOSED) else weight


def _swapped(weight: Tensor, groups: int) -> Tensor:
    """Swaps inputs and outputs within each group; doing it twice changes nothing."""
    first, second, *kernel = weight.shape
    blocks = weight.reshape(groups, first // groups, second, *kernel)
    return blocks.transpose(1, 2).reshape(groups * second, first // groups, *kernel)


def set_weight(layer: nn.Module, weight: Tensor) -> None:
    """Gives a layer another weight, in the form of `weight_of`, which is not trained."""
    layer.weight = nn.Parameter(native_weight(layer, weight).contiguous(), requires_grad=False)


def bias_of(layer: nn.Module) -> Tensor | None:
    """Returns the bias `(out,)` of a layer, detached, or None where it has none."""
    bias = getattr(layer, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def is_pointwise(layer: nn.Module) -> bool:
    """Whether the layer mixes channels only: linear, or a convolution of kernel 1."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, CONVOLUTIONS) and set(layer.kernel_size) == {1})


def groups_of(layer: nn.Module) -> int:
    """Returns the number of groups, 1 for a linear layer and an embedding."""
    return layer.groups if isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED, GroupedLinear)) else 1


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each input channel is filtered on its own."""
    return isinstance(layer, CONVOLUTIONS + TRANSPOSED) and layer.groups > 1 and layer.groups == layer.in_channels


def out_channels(layer: nn.Module) -> int:
    """Returns the number of output channels or features; the width of an embedding's vectors."""
    return layer.embedding_dim if isinstance(layer, nn.Embedding) else weight_of(layer).shape[0]


def channels_last(layer: nn.Module) -> bool:
    """Whether the channels of a layer's output are its last axis rather than the one behind the batch."""
    return isinstance(layer, nn.Linear | nn.Embedding)


def weight_matrices(layer: nn.Module) -> Tensor:
    """Returns the weights as float32 `(groups, out / groups, features)`, a view where they are float32 already."""
    weight = weight_of(layer)
    return weight.float().reshape(groups_of(layer), weight.shape[0] // groups_of(layer), -1)


def with_weights(layer: nn.Module, matrices: Tensor, bias: Tensor | None = None) -> nn.Module:
    """Returns a copy of `layer` with other weights of the same shape, and another bias if one is given.

    Args:
        matrices: `(groups, out / groups, features)`.
        bias: `(out,)`; None keeps the layer's.
    """
    new = bare_copy(layer)
    weight = weight_of(layer)
    set_weight(new, matrices.reshape(weight.shape).to(weight.dtype))
    kept = bias_of(layer)
    if bias is not None:
        new.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)
    elif kept is not None:
        new.bias = nn.Parameter(kept.clone(), requires_grad=False)
    return new


def corrected_bias(layer: nn.Module, matrices: Tensor, mean: Tensor) -> Tensor | None:
    """Returns the bias that keeps the mean output when the weights become `matrices`.

    Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, section 4.2.
    A layer without a bias gains one only if the mean really moves.

    Args:
        matrices: `(groups, out / groups, features)`, the new weights.
        mean: `(groups, features)` mean of the inputs.
    """
    shift = torch.einsum("gof,gf->go", weight_matrices(layer) - matrices.float(), mean.float()).reshape(-1)
    bias = bias_of(layer)
    if bias is None:
        return shift if bool(shift.abs().max() > 0) else None
    return bias.float() + shift


def bare_copy(layer: nn.Module) -> nn.Module:
    """Returns a copy of `layer` without hooks and without a number format, sharing no tensor with it."""
    new = copy.copy(layer)
    new.__dict__.pop("weight_format", None)  # its next weights need not be values of it
    new._parameters = {}
    new._buffers = {}
    new._forward_hooks = type(layer._forward_hooks)()
    new._forward_pre_hooks = type(layer._forward_pre_hooks)()
    for name in layer._parameters:
        new.register_parameter(name, None)
    return new


def make_layer(layer: nn.Module, weight: Tensor, bias: Tensor | None, **settings: Any) -> nn.Module:
    """Builds a leaf of the same type as `layer` around `weight`, which decides its channels and kernel.

    Args:
        layer: of a type that techniques compress.
        weight: `(out, in / groups, *kernel)`, `(out, in)` for a linear layer, `(rows, width)` for an embedding.
        bias: `(out,)` or None.
        settings: stride, padding, dilation, groups and so on of a convolution; others default to torch's.
    """
    outputs, inputs, *kernel = weight.shape
    # On the meta device nothing is allocated or initialised: the tensors are exchanged below.
    if isinstance(layer, nn.Linear):
        new: nn.Module = nn.Linear(inputs, outputs, bias is not None, device="meta")
    elif isinstance(layer, nn.Embedding):
        new = nn.Embedding(outputs, inputs, _weight=weight)
    else:
        kind: type[nn.Module] = next(kind for kind in CONVOLUTIONS + TRANSPOSED if isinstance(layer, kind))
        inputs *= settings.get("groups", 1)
        new = kind(inputs, outputs, tuple(kernel), bias=bias is not None, device="meta", **settings)
    dtype = weight_of(layer).dtype
    set_weight(new, weight.to(dtype, copy=True))
    if bias is not None:
        new.bias = nn.Parameter(bias.to(dtype, copy=True), requires_grad=False)
    return new.train(layer.training)
