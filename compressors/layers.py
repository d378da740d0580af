"""The view that techniques share of a layer: kinds, and weights as groups of matrices."""

import copy

import torch
from torch import Tensor, nn

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)
"""Layer types that techniques compress."""


def is_pointwise(layer: nn.Module) -> bool:
    """Whether the layer mixes channels only: linear, or a convolution of kernel 1."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv1d | nn.Conv2d) and set(layer.kernel_size) == {1})


def groups_of(layer: nn.Module) -> int:
    """Returns the number of groups, 1 for a linear layer."""
    return layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d) else 1


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each input channel is filtered on its own."""
    return isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups > 1 and layer.groups == layer.in_channels


def out_channels(layer: nn.Module) -> int:
    """Returns the number of output channels or features."""
    return int(layer.weight.shape[0])


def weight_matrices(layer: nn.Module) -> Tensor:
    """Returns the weights as `(groups, out / groups, features)`, a view in double precision where possible."""
    weight: Tensor = layer.weight.detach()
    return weight.float().reshape(groups_of(layer), weight.shape[0] // groups_of(layer), -1)


def with_weights(layer: nn.Module, matrices: Tensor, bias: Tensor | None = None) -> nn.Module:
    """Returns a copy of `layer` with other weights of the same shape, and another bias if one is given.

    Args:
        matrices: `(groups, out / groups, features)`.
        bias: `(out,)`; None keeps the layer's.
    """
    new = bare_copy(layer)
    dtype = layer.weight.dtype
    new.weight = nn.Parameter(matrices.reshape(layer.weight.shape).to(dtype), requires_grad=False)
    if bias is not None:
        new.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    elif layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
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
    if layer.bias is None:
        return shift if bool(shift.abs().max() > 0) else None
    return layer.bias.detach().float() + shift


def bare_copy(layer: nn.Module) -> nn.Module:
    """Returns a copy of `layer` without hooks, sharing no tensor with it."""
    new = copy.copy(layer)
    new._parameters = {}
    new._buffers = {}
    new._forward_hooks = type(layer._forward_hooks)()
    new._forward_pre_hooks = type(layer._forward_pre_hooks)()
    new.register_parameter("weight", None)
    new.register_parameter("bias", None)
    return new


def make_conv(layer: nn.Module, weight: Tensor, bias: Tensor | None, **settings: object) -> nn.Module:
    """Builds a leaf of the same type as `layer` around `weight`, which decides its channels and kernel.

    Args:
        layer: a convolution or a linear layer.
        weight: `(out, in / groups, *kernel)`, or `(out, in)` for a linear layer.
        bias: `(out,)` or None.
        settings: stride, padding, dilation, groups of a convolution; others default to torch's.
    """
    weight = weight.to(layer.weight.dtype)
    if isinstance(layer, nn.Linear):
        new: nn.Module = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    else:
        groups = int(settings.get("groups", 1))  # type: ignore[call-overload]
        new = nn.utils.skip_init(
            type(layer), weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), bias=bias is not None, **settings
        )
    new.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        new.bias = nn.Parameter(bias.to(weight.dtype).clone(), requires_grad=False)
    return new.train(layer.training)
