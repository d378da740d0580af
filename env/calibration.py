"""One pass over calibration data: what every closed-form repair needs to know of each layer."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.compressors.errors import ModelError
from plywise.compressors.layers import CONVOLUTIONS, TRANSPOSED, channels_last, groups_of
from plywise.compressors.statistics import LayerStatistics, isotropic
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
                found[name] = moments(outputs, channels_last(module))

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
    covariances = {name: found.covariance for name, found in recorder.statistics.items()}
    deviations = {name: recorder.moments[name].deviation for name in covariances}
    importance = channel_importance(network, inputs, labels, covariances, deviations, seed)
    units = {group.leader: group.unit for group in network.groups}
    statistics = {
        name: replace(found, importance=importance[name], unit=units.get(name, 1))
        for name, found in recorder.statistics.items()
    }
    return Calibration(inputs, statistics, {len(inputs): recorder.moments})


def moments(outputs: Tensor, last: bool) -> Moments:
    """Returns the moments over all but the channel dimension, which is the last one or the one behind the batch."""
    shape = (-1, outputs.shape[-1], 1) if last else (*outputs.shape[:2], -1)
    blocks = outputs.reshape(shape)  # (n, out, positions)
    # One dimension after the other: torch takes five times as long over both at once.
    mean = blocks.mean(2).mean(0)
    variance = (blocks - mean[:, None]).square_().mean(2).mean(0)
    return Moments(mean, variance.sqrt())


class _Recorder:
    def __init__(self, network: Network, generator: torch.Generator) -> None:
        self.layers = {layer.name: layer for layer in network.layers}
        self.generator = generator
        self.statistics: dict[str, LayerStatistics] = {}
        self.moments: dict[str, Moments] = {}

    def record(self, name: str, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        if not bool(torch.isfinite(outputs).all()):
            raise ModelError(f"{name} gives values that are not finite on the calibration data; check weights and data")
        self.moments[name] = moments(outputs, channels_last(module))
        layer = self.layers.get(name)
        if layer is None:
            return
        covariance, mean = input_moments(module, inputs, self.generator)
        if not bool(torch.isfinite(covariance).all()):
            raise ModelError(f"{name} sees inputs too large to square on the calibration data; normalise the data")
        seen = outputs if layer.relu is None else outputs.clamp(*layer.relu)
        frequency = row_frequency(module, inputs) if isinstance(module, nn.Embedding) else None
        self.statistics[name] = LayerStatistics(
            covariance, mean, self._values(inputs.float()), self._values(seen), frequency=frequency
        )

    def _values(self, values: Tensor) -> Tensor:
        flat = values.flatten()
        picked = flat[torch.randint(flat.numel(), (VALUES,), generator=self.generator)]
        return torch.cat([picked, flat.amin()[None], flat.amax()[None]]).sort().values


def input_moments(layer: nn.Module, inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns covariance `(groups, features, features)` and mean `(groups, features)` of the unfolded inputs."""
    if isinstance(layer, nn.Embedding):
        return isotropic(layer.embedding_dim)
    rows = patches(layer, inputs, ROWS, generator)  # (rows, groups, features)
    mean = rows.mean(0)
    centred = (rows - mean).transpose(0, 1)  # (groups, rows, features)
    return centred.transpose(1, 2) @ centred / rows.shape[0], mean


def row_frequency(layer: nn.Embedding, inputs: Tensor) -> Tensor:
    """Returns how often each row of an embedding is read `(rows,)`, one on average.

    Each row counts as read once more than it was, since a few hundred samples do not show every row.
    """
    counts = torch.bincount(inputs.flatten(), minlength=layer.num_embeddings).float() + 1.0
    return counts / counts.mean()


def patches(layer: nn.Module, inputs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns up to `count` random unfolded inputs `(rows, groups, features)` in the order of the weights."""
    if isinstance(layer, nn.Linear):
        rows = inputs.flatten(0, -2)
        return _sampled(rows, count, generator)[:, None, :]
    assert isinstance(layer, CONVOLUTIONS + TRANSPOSED)
    transposed, axes = isinstance(layer, TRANSPOSED), len(layer.kernel_size)
    view = _stuffed(layer, inputs) if isinstance(layer, TRANSPOSED) else _padded(layer, inputs)
    steps = (1,) * axes if transposed else layer.stride
    for axis, (size, step, gap) in enumerate(zip(layer.kernel_size, steps, layer.dilation, strict=True)):
        view = view.unfold(2 + axis, (size - 1) * gap + 1, step)[..., ::gap]
    # view: (n, channels, *positions, *kernel), no copy yet
    extents = (view.shape[0], *view.shape[2 : 2 + axes])
    total = math.prod(extents)
    flat = torch.arange(total) if total <= count else torch.randint(total, (count,), generator=generator)
    place: tuple[Tensor, ...] = torch.unravel_index(flat, extents)
    rows = view.movedim(1, axes + 1)[place]  # (rows, channels, *kernel)
    rows = rows.flip(tuple(range(2, 2 + axes))) if transposed else rows
    return rows.reshape(rows.shape[0], groups_of(layer), -1)


def _padded(layer: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)


def _stuffed(layer: nn.ConvTranspose1d | nn.ConvTranspose2d, inputs: Tensor) -> Tensor:
    """Returns the inputs over which an ordinary convolution of the flipped kernel does what the transposed one does."""
    sizes = [(size - 1) * step + 1 for size, step in zip(inputs.shape[2:], layer.stride, strict=True)]
    stuffed = inputs.new_zeros((*inputs.shape[:2], *sizes))
    places: list[slice] = [slice(None, None, step) for step in (1, 1, *layer.stride)]
    stuffed[tuple(places)] = inputs
    pads: list[int] = []
    for axis in reversed(range(len(sizes))):
        around = layer.dilation[axis] * (layer.kernel_size[axis] - 1) - int(layer.padding[axis])
        pads += [around, around + layer.output_padding[axis]]
    return F.pad(stuffed, pads)  # what is negative is cut off


def _sampled(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if rows.shape[0] <= count:
        return rows
    return rows[torch.randperm(rows.shape[0], generator=generator)[:count]]
