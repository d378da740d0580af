"""Repair of a compressed network: each channel gets back the mean and the deviation that it had in the original.

The generalisation of BatchNorm recalibration to networks whose BatchNorms have been merged. It compares both
networks on the *same* calibration inputs, so what sampling does to the moments cancels, and a network that is
hardly disturbed is hardly changed. One forward pass corrects all layers in order, each on the realised inputs.
Source: Nagel et al., Data-Free Quantization, 2019, section 4.2 (empirical bias correction); Ioffe, Batch
Renormalization, 2017 (what changes in a network whose statistics moved).
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.channel_order import ChannelOrder, inverted
from plywise.compressors.layers import bias_of, channels_last, set_weight, weight_of
from plywise.compressors.static_quantized import StaticQuantized
from plywise.compressors.weight_format import attach_format, short, takes_gain, weight_format
from plywise.env.calibration import Moments, moments

TRUST = 0.05
"""Relative disturbance of a channel's output at which half of the correction of its deviation is applied."""


def match_moments(
    model: nn.Module, inputs: Tensor, targets: Mapping[str, Moments], changed: Mapping[str, nn.Module]
) -> None:
    """Corrects the layers in `changed` in place; they must not be shared with another network.

    What runs behind the last of them is not computed.

    Args:
        model: the compressed network, in eval mode.
        inputs: `(n, ...)` calibration inputs, run as one batch.
        targets: the original's moments for each name in `changed`, already reduced to the channels that stay.
        changed: by name, layers (or chains, or `StaticQuantized`) and BatchNorms of `model`.
    """
    left = {name for name, module in changed.items() if not isinstance(last_leaf(module), nn.Embedding)}
    if not left:
        return  # a table of vectors has no bias, and its formats no factor for a column
    handles = []

    def correct(name: str, target: Moments) -> Any:
        def hook(leaf: nn.Module, args: tuple[Any, ...], outputs: Tensor) -> Tensor:
            last = channels_last(leaf)
            factor, shift = _correction(moments(outputs, last), target, _may_scale(leaf))
            _apply(leaf, factor, shift)
            left.discard(name)
            if not left:
                raise _AllCorrectedError
            shape = (-1,) if last else (-1,) + (1,) * (outputs.dim() - 2)
            return torch.addcmul(shift.view(shape), outputs, factor.view(shape))

        return hook

    for name in left:
        target = _before_order(targets[name], changed[name])
        handles.append(last_leaf(changed[name]).register_forward_hook(correct(name, target)))
    try:
        with torch.no_grad(), suppress(_AllCorrectedError):
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()


class _AllCorrectedError(Exception):
    """Ends the forward pass."""


def last_leaf(module: nn.Module) -> nn.Module:
    """Returns the leaf that makes the outputs of a compressed layer."""
    while isinstance(module, nn.Sequential | StaticQuantized):
        module = module.layer if isinstance(module, StaticQuantized) else _last_weighted(module)
    return module


def _last_weighted(chain: nn.Sequential) -> nn.Module:
    return chain[-2] if isinstance(chain[-1], ChannelOrder) else chain[-1]


def _before_order(target: Moments, module: nn.Module) -> Moments:
    """Returns the moments as the last leaf has them, where a gather puts its channels in order afterwards."""
    while isinstance(module, StaticQuantized):
        module = module.layer
    if not isinstance(module, nn.Sequential) or not isinstance(module[-1], ChannelOrder):
        return target
    order = inverted(torch.tensor(module[-1].order))
    return Moments(target.mean[order], target.deviation[order])


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
