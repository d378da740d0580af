"""One pass over calibration data: what every closed-form repair needs to know of each layer."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.compressors.errors import ModelError
from plywise.compressors.layers import groups_of, weight_of
from plywise.compressors.statistics import LayerStatistics
from plywise.env.channel_groups import NORMS
from plywise.env.network import Network

ROWS = 16384
"""Patches that a layer's moments are taken from."""
VALUES = 4096
"""Activation values kept of each layer's inputs and of its outputs."""


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of each output channel, `(out,)` each."""

    mean: Tensor
    deviation: Tensor


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was recorded.

    Attributes:
        inputs: `(n, ...)` the calibration inputs, normalised.
        statistics: by layer name.
        outputs: moments of each layer's and remaining BatchNorm's output, by how many of the inputs they are over.
    """

    inputs: Tensor
    statistics: dict[str, LayerStatistics]
    outputs: dict[int, dict[str, Moments]]

    def moments(self, network: Network, count: int | None = None) -> dict[str, Moments]:
        """Returns the original's moments over the first `count` inputs (None: all), by module name."""
        count = len(self.inputs) if count is None else min(count, len(self.inputs))
        if count not in self.outputs:
            found: dict[str, Moments] = {}

            def record(name: str, module: nn.Module, _: Tensor, outputs: Tensor) -> None:
                found[name] = moments(outputs, isinstance(module, nn.Linear))

            with torch.no_grad(), _outputs(network, record):
                network.model(self.inputs[:count])
            self.outputs[count] = found
        return self.outputs[count]


def calibrate(network: Network, inputs: Tensor, labels: Tensor, seed: int = 0) -> Calibration:
    """Runs the network over calibration data, once forwards and once backwards (for Taylor importance).

    Args:
        network: what to calibrate.
        inputs: `(n, ...)` normalised training inputs; the whole set runs as one batch.
        labels: `(n,)`.
        seed: of the choice of patches and values.

    Raises:
        ModelError: if activations are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    recorder = _Recorder(network, generator)
    with torch.no_grad(), _outputs(network, recorder.record):
        network.model(inputs)
    importance = _importance(network, inputs, labels)
    statistics = {name: LayerStatistics(*parts, importance[name]) for name, parts in recorder.statistics.items()}
    return Calibration(inputs, statistics, {len(inputs): recorder.moments})


def moments(outputs: Tensor, channels_last: bool) -> Moments:
    """Returns the moments over all but the channel dimension (1, or the last for linear layers)."""
    rows = outputs.flatten(0, -2) if channels_last else outputs.transpose(0, 1).flatten(1).T  # (n, out)
    return Moments(rows.mean(0), rows.std(0, correction=0))


class _Recorder:
    def __init__(self, network: Network, generator: torch.Generator) -> None:
        self.layers = {layer.name: layer for layer in network.layers}
        self.generator = generator
        self.statistics: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        self.moments: dict[str, Moments] = {}

    def record(self, name: str, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        if not bool(torch.isfinite(outputs).all()):
            raise ModelError(f"{name} gives values that are not finite on the calibration data; check weights and data")
        self.moments[name] = moments(outputs, isinstance(module, nn.Linear))
        layer = self.layers.get(name)
        if layer is None:
            return
        rows = patches(module, inputs, ROWS, self.generator)  # (rows, groups, features)
        mean = rows.mean(0)
        centred = (rows - mean).transpose(0, 1)  # (groups, rows, features)
        covariance = centred.transpose(1, 2) @ centred / rows.shape[0]
        if not bool(torch.isfinite(covariance).all()):
            raise ModelError(f"{name} sees inputs too large to square on the calibration data; normalise the data")
        seen = outputs if layer.relu is None else outputs.clamp(*layer.relu)
        self.statistics[name] = (covariance, mean, self._values(inputs), self._values(seen))

    def _values(self, values: Tensor) -> Tensor:
        flat = values.flatten()
        picked = flat[torch.randint(flat.numel(), (VALUES,), generator=self.generator)]
        return torch.cat([picked, flat.amin()[None], flat.amax()[None]]).sort().values


def patches(layer: nn.Module, inputs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns up to `count` random unfolded inputs `(rows, groups, features)` in the order of the weights."""
    if isinstance(layer, nn.Linear):
        rows = inputs.flatten(0, -2)
        return _sampled(rows, count, generator)[:, None, :]
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    view = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    axes = len(layer.kernel_size)
    for axis, (size, step, gap) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        view = view.unfold(2 + axis, (size - 1) * gap + 1, step)[..., ::gap]
    # view: (n, channels, *positions, *kernel), no copy yet
    extents = (view.shape[0], *view.shape[2 : 2 + axes])
    total = math.prod(extents)
    flat = torch.arange(total) if total <= count else torch.randint(total, (count,), generator=generator)
    place: tuple[Tensor, ...] = torch.unravel_index(flat, extents)
    rows = view.movedim(1, axes + 1)[place]  # (rows, channels, *kernel)
    return rows.reshape(rows.shape[0], groups_of(layer), -1)


def _sampled(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if rows.shape[0] <= count:
        return rows
    return rows[torch.randperm(rows.shape[0], generator=generator)[:count]]


def _importance(network: Network, inputs: Tensor, labels: Tensor, batch: int = 64) -> dict[str, dict[str, Tensor]]:
    """Returns for each layer the importance of its output channels, summed over each channel group."""
    taylor = _taylor(network, inputs, labels, batch)
    own = {
        name: {"l2": weight_of(network.modules[name]).float().flatten(1).norm(dim=1), "taylor": taylor[name]}
        for name in taylor
    }
    for group in network.groups:
        sides = [side for side in group.producers if side.module in own]
        for criterion in ("l2", "taylor"):
            shared = torch.zeros(group.channels)
            for side in sides:
                shared.index_add_(0, side.root, own[side.module][criterion][side.local])
            for side in sides:
                own[side.module][criterion] = own[side.module][criterion].index_copy(0, side.local, shared[side.root])
    return own


def _taylor(network: Network, inputs: Tensor, labels: Tensor, batch: int) -> dict[str, Tensor]:
    """First-order Taylor importance in gate form: mean squared sum of gradient times activation of each channel."""
    names = {layer.name for layer in network.layers}
    total: dict[str, Tensor] = {}
    for start in range(0, inputs.shape[0], batch):
        kept: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, _: Tensor, outputs: Tensor, kept: dict[str, Tensor] = kept) -> None:
            if name in names:
                kept[name] = outputs

        images = inputs[start : start + batch].clone().requires_grad_(True)
        with torch.enable_grad(), _outputs(network, keep):
            loss = F.cross_entropy(network.model(images), labels[start : start + batch], reduction="sum")
            gradients = torch.autograd.grad(loss, list(kept.values()))
        for (name, outputs), gradient in zip(kept.items(), gradients, strict=True):
            product = (outputs * gradient).detach()
            if isinstance(network.modules[name], nn.Linear):
                gate = product.reshape(product.shape[0], -1, product.shape[-1]).sum(1)
            else:
                gate = product.flatten(2).sum(2)
            total[name] = total.get(name, torch.zeros(gate.shape[1])) + gate.square().sum(0)
    return {name: value / inputs.shape[0] for name, value in total.items()}


Record = Callable[[str, nn.Module, Tensor, Tensor], None]


@contextmanager
def _outputs(network: Network, record: Record) -> Iterator[None]:
    """Calls `record(name, module, inputs, outputs)` for each layer and remaining BatchNorm of a forward pass."""
    names = {layer.name for layer in network.layers}

    def hook(name: str) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], outputs: Tensor) -> None:
            record(name, module, args[0], outputs)

        return after

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in network.modules.items()
        if name in names or isinstance(module, NORMS)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
