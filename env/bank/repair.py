"""Repair of a compressed network, in closed form, by what its original puts out on the same calibration inputs.

Each channel gets back the mean and the deviation that it had: the generalisation of BatchNorm recalibration to networks
whose BatchNorms have been merged. Both networks run on the *same* inputs, so what sampling does to the moments cancels,
and a network that is hardly disturbed is hardly changed. Before that, the weights of layers that are disturbed are
refitted. One forward pass repairs all layers in order, each on the realised inputs.
Source: Nagel et al., Data-Free Quantization, 2019, section 4.2 (empirical bias correction); Ioffe, Batch
Renormalization, 2017 (what changes in a network whose statistics moved).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.errors import ConfigurationError, unknown_name
from plywise.compressors.formats.weight_format import attach_format, short, takes_gain, weight_format
from plywise.compressors.modules.branches import Branches
from plywise.compressors.modules.channel_order import ChannelOrder, inverted
from plywise.compressors.modules.layers import bias_of, set_weight, weight_of
from plywise.compressors.modules.static_quantized import StaticQuantized
from plywise.env.bank.least_squares import refit, refits
from plywise.env.bank.repair_target import Target, places_of, rows_of, watched
from plywise.env.calibration.calibration import Moments, moments
from plywise.env.network.graph import read_by
from plywise.env.task.forward import Run

TRUST = 0.05
"""Relative disturbance of a channel's output at which half of the correction of its deviation is applied."""

MOST_SCALED = (0.25, 4.0)
"""Least and most that a channel is multiplied by."""


@dataclass(frozen=True)
class Repair:
    """What is done; all of it, unless something is to be left out for comparison.

    Attributes:
        inputs: calibration inputs that it looks at, at most; 0 for no repair. On ResNet-20, 128 take a tenth of the
            forward pass over 2,000 images, and up to a third with least squares.
        means: whether channels get their means back, by their biases.
        deviations: whether they get their deviations back, by their weights.
        least_squares: whether weights are refitted.
    """

    inputs: int = 128
    means: bool = True
    deviations: bool = True
    least_squares: bool = True

    def __bool__(self) -> bool:
        """Whether anything is repaired."""
        return self.inputs != 0 and (self.means or self.deviations or self.least_squares)


FULL, NONE = Repair(), Repair(inputs=0)
PARTS = ("means", "deviations", "least_squares")


def make_repair(parts: Sequence[str]) -> Repair:
    """Returns the repair of some of `PARTS`, of `none` of them, or of all where nothing is named.

    Raises:
        ConfigurationError: if a part is unknown.
    """
    if not parts:
        return FULL
    if list(parts) == ["none"]:
        return NONE
    if "none" in parts:
        raise ConfigurationError(f"'none' of the repair stands alone; of {', '.join(PARTS)} name those to do")
    for part in parts:
        if part not in PARTS:
            raise unknown_name("part of the repair", part, (*PARTS, "none"))
    return Repair(**{part: part in parts for part in PARTS})


def repair(
    model: nn.Module,
    run: Run,
    targets: Mapping[str, Target],
    replaced: Mapping[str, nn.Module],
    settings: Repair = FULL,
) -> None:
    """Corrects the layers in `replaced` in place; they must not be shared with another network.

    Args:
        model: the compressed network, in eval mode.
        run: runs it on calibration inputs, as one batch.
        targets: of the original, for each name in `replaced`, already reduced to the channels that stay.
        replaced: by name, layers (or chains, or `StaticQuantized`) and BatchNorms of `model`.
        settings: what to do.
    """
    left: dict[nn.Module, tuple[str, Tensor]] = {}
    for name, module in replaced.items():
        for leaf, channels in output_leaves(module, torch.arange(len(targets[name].moments.mean))):
            # A table of vectors has no bias, and its formats no factor for a column.
            if not isinstance(leaf, nn.Embedding):
                left[leaf] = name, channels
    alongside: dict[str, Tensor] = {}

    def correct(leaf: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], outputs: Tensor) -> Tensor:
        inputs = read_by(args, keywords)
        if leaf not in left or inputs is None or not outputs.numel():  # runs a second time, or on nothing
            return outputs
        name, channels = left.pop(leaf)
        target = targets[name].of(channels)
        last = target.last
        # What else a layer is given, such as the size of its outputs, may change which inputs they see.
        plain = refits(leaf) and len(target.rows) and len(args) + len(keywords) == 1
        if settings.least_squares and plain and (target.shortcut is None or name in alongside):
            places = places_of(outputs, last, len(target.rows))
            missing = target.rows - rows_of(outputs, places, last)
            if target.shortcut is not None:
                missing = missing - alongside[name][:, channels]
            if refit(leaf, inputs, missing, float(target.moments.deviation.square().sum()), places):
                outputs = leaf.forward(inputs)
        found = moments(outputs, last)
        factor, shift = _correction(found, target.moments, settings.deviations and target.once and _may_scale(leaf))
        shift = shift if settings.means else found.mean * (1.0 - factor)
        if not bool((factor != 1).any() or (shift != 0).any()):
            return outputs
        _apply(leaf, factor, shift)
        shape = (-1,) if last else (-1,) + (1,) * (outputs.dim() - 2)
        return torch.addcmul(shift.view(shape), outputs, factor.view(shape))

    shortcuts = {
        name: (target.shortcut, target.last, len(target.rows))
        for name, target in targets.items()
        if settings.least_squares and target.shortcut is not None
    }
    handles = [leaf.register_forward_hook(correct, with_kwargs=True) for leaf in left]
    try:
        with torch.no_grad(), watched(model, shortcuts, alongside):
            run(model)
    finally:
        for handle in handles:
            handle.remove()


def output_leaves(module: nn.Module, channels: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yields the leaves that make the outputs of a compressed layer, each with the channels that it makes.

    Args:
        module: the compressed layer.
        channels: `(out,)` what to call its output channels.
    """
    if isinstance(module, StaticQuantized):
        yield from output_leaves(module.layer, channels)
    elif isinstance(module, Branches):
        leaves = [leaf for branch in module for leaf, _ in output_leaves(branch, channels)]
        yield from zip(leaves, channels.split_with_sizes([len(weight_of(leaf)) for leaf in leaves]), strict=True)
    elif not isinstance(module, nn.Sequential):
        yield module, channels
    elif isinstance(order := module[-1], ChannelOrder):
        yield from output_leaves(module[-2], channels[inverted(torch.tensor(order.order))])
    else:
        yield from output_leaves(module[-1], channels)


def _may_scale(leaf: nn.Module) -> bool:
    """Returns whether channels may have scales of their own: a fixed point, or one scale for a layer, must stay so."""
    fmt = weight_format(leaf)
    return fmt is None or takes_gain(fmt, len(weight_of(leaf)))


def _correction(found: Moments, target: Moments, scales: bool) -> tuple[Tensor, Tensor]:
    """Returns per-channel factor and shift that bring `found` to `target`; the means only, unless it `scales`."""
    if not scales:
        return torch.ones_like(found.mean), target.mean - found.mean
    ratio = target.deviation / found.deviation.clamp(min=1e-12)
    usable = (found.deviation > 1e-6 * found.deviation.max()) & (target.deviation > 0)
    ratio = torch.where(usable, ratio, torch.ones_like(ratio)).clamp(*MOST_SCALED)
    disturbance = (ratio.log().square()) / TRUST**2
    factor = 1.0 + (ratio - 1.0) * disturbance / (1.0 + disturbance)
    return factor, target.mean - factor * found.mean


def _apply(leaf: nn.Module, factor: Tensor, shift: Tensor) -> None:
    """Multiplies a leaf's outputs by `factor` and adds `shift`, keeping its weights in their format."""
    fmt, weight, bias = weight_format(leaf), weight_of(leaf), bias_of(leaf)
    bias = shift if bias is None else bias * factor + shift
    if fmt is not None:
        scaled = fmt.scaled(factor).short() if bool((factor != 1).any()) else fmt
        weight, bias = scaled.decode(fmt.encode(weight)), short(bias)
        attach_format(leaf, scaled)
    else:
        weight = weight * factor.view(-1, *(1,) * (weight.dim() - 1))
    set_weight(leaf, weight)
    leaf.bias = nn.Parameter(bias, requires_grad=False)
