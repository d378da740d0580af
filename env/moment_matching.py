"""Repair of a compressed network: each channel gets back the mean and the deviation that it had in the original.

The generalisation of BatchNorm recalibration to networks whose BatchNorms have been merged. It compares both
networks on the *same* calibration inputs, so what sampling does to the moments cancels, and a network that is
hardly disturbed is hardly changed. One forward pass corrects all layers in order, each on the realised inputs.
Source: Nagel et al., Data-Free Quantization, 2019, section 4.2 (empirical bias correction); Ioffe, Batch
Renormalization, 2017 (what changes in a network whose statistics moved).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.branches import Branches
from plywise.compressors.channel_order import ChannelOrder, inverted
from plywise.compressors.layers import bias_of, channels_last, set_weight, weight_of
from plywise.compressors.static_quantized import StaticQuantized
from plywise.compressors.weight_format import attach_format, short, takes_gain, weight_format
from plywise.env.calibration import Moments, moments

TRUST = 0.05
"""Relative disturbance of a channel's output at which half of the correction of its deviation is applied."""


def match_moments(
    model: nn.Module, inputs: Tensor, targets: Mapping[str, Moments], matched: Mapping[str, nn.Module]
) -> None:
    """Corrects the layers in `matched` in place; they must not be shared with another network.

    Args:
        model: the compressed network, in eval mode.
        inputs: `(n, ...)` calibration inputs, run as one batch.
        targets: the original's moments for each name in `matched`, already reduced to the channels that stay.
        matched: by name, layers (or chains, or `StaticQuantized`) and BatchNorms of `model`.
    """
    makers = [pair for name, module in matched.items() for pair in output_leaves(module, targets[name])]
    # A table of vectors has no bias, and its formats no factor for a column.
    left = {leaf: target for leaf, target in makers if not isinstance(leaf, nn.Embedding)}

    def correct(leaf: nn.Module, args: tuple[Any, ...], outputs: Tensor) -> Tensor:
        if leaf not in left:  # runs a second time
            return outputs
        last = channels_last(leaf)
        factor, shift = _correction(moments(outputs, last), left.pop(leaf), _may_scale(leaf))
        _apply(leaf, factor, shift)
        shape = (-1,) if last else (-1,) + (1,) * (outputs.dim() - 2)
        return torch.addcmul(shift.view(shape), outputs, factor.view(shape))

    handles = [leaf.register_forward_hook(correct) for leaf in left]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()


def output_leaves(module: nn.Module, target: Moments) -> Iterator[tuple[nn.Module, Moments]]:
    """Yields the leaves that make the outputs of a compressed layer, each with the moments of its own channels.

    Args:
        module: the compressed layer.
        target: moments of its outputs.
    """
    if isinstance(module, StaticQuantized):
        yield from output_leaves(module.layer, target)
    elif isinstance(module, Branches):
        leaves = [leaf for branch in module for leaf, _ in output_leaves(branch, target)]
        widths = [len(weight_of(leaf)) for leaf in leaves]
        each = (values.split_with_sizes(widths) for values in (target.mean, target.deviation))
        yield from zip(leaves, map(Moments, *each), strict=True)
    elif not isinstance(module, nn.Sequential):
        yield module, target
    elif isinstance(order := module[-1], ChannelOrder):
        places = inverted(torch.tensor(order.order))
        yield from output_leaves(module[-2], Moments(target.mean[places], target.deviation[places]))
    else:
        yield from output_leaves(module[-1], target)


def _may_scale(leaf: nn.Module) -> bool:
    """Returns whether channels may have scales of their own: a fixed point, or one scale for a layer, must stay so."""
    form = weight_format(leaf)
    return form is None or takes_gain(form, len(weight_of(leaf)))


def _correction(found: Moments, target: Moments, scales: bool) -> tuple[Tensor, Tensor]:
    """Returns per-channel factor and shift that bring `found` to `target`; the means only, unless it `scales`."""
    if not scales:
        return torch.ones_like(found.mean), target.mean - found.mean
    ratio = target.deviation / found.deviation.clamp(min=1e-12)
    usable = (found.deviation > 1e-6 * found.deviation.max()) & (target.deviation > 0)
    ratio = torch.where(usable, ratio, torch.ones_like(ratio)).clamp(0.25, 4.0)
    disturbance = (ratio.log().square()) / TRUST**2
    factor = 1.0 + (ratio - 1.0) * disturbance / (1.0 + disturbance)
    return factor, target.mean - factor * found.mean


def _apply(leaf: nn.Module, factor: Tensor, shift: Tensor) -> None:
    """Multiplies a leaf's outputs by `factor` and adds `shift`, keeping its weights in their format."""
    form, weight, bias = weight_format(leaf), weight_of(leaf), bias_of(leaf)
    bias = shift if bias is None else bias * factor + shift
    if form is not None:
        scaled = form.scaled(factor).short() if bool((factor != 1).any()) else form
        weight, bias = scaled.decode(form.encode(weight)), short(bias)
        attach_format(leaf, scaled)
    else:
        weight = weight * factor.view(-1, *(1,) * (weight.dim() - 1))
    set_weight(leaf, weight)
    leaf.bias = nn.Parameter(bias, requires_grad=False)
