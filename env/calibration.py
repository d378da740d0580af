"""One pass over calibration data: what every closed-form repair needs to know of each layer."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.compressors.errors import ModelError
from plywise.compressors.layers import groups_of
from plywise.compressors.statistics import LayerStatistics
from plywise.env.channel_importance import channel_importance
from plywise.env.layer_outputs import layer_outputs
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

            with torch.no_grad(), layer_outputs(network, record):
                network.model(self.inputs[:count])
            self.outputs[count] = found
        return self.outputs[count]


def calibrate(network: Network, inputs: Tensor, labels: Tensor, seed: int = 0) -> Calibration:
    """Runs the network over calibration data, once forwards and once backwards (for the importance of channels).

    Args:
        network: what to calibrate.
        inputs: `(n, ...)` normalised training inputs; the whole set runs as one batch.
        labels: `(n,)`.
        seed: of the choice of patches and values, and of the random importance.

    Raises:
        ModelError: if activations are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    recorder = _Recorder(network, generator)
    with torch.no_grad(), layer_outputs(network, recorder.record):
        network.model(inputs)
    covariances = {name: parts[0] for name, parts in recorder.statistics.items()}
    deviations = {name: recorder.moments[name].deviation for name in covariances}
    importance = channel_importance(network, inputs, labels, covariances, deviations, seed)
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
