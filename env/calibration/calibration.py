"""One pass over calibration data: what every closed-form repair needs to know of each layer.

It runs in batches, so that what it takes in memory does not grow with the data.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.compressors.errors import ModelError
from plywise.compressors.modules.layers import (
    CONVOLUTIONS,
    TRANSPOSED,
    channels_last,
    groups_of,
    weight_matrices,
    weight_of,
)
from plywise.compressors.statistics.feature_blocks import WIDE
from plywise.compressors.statistics.statistics import LayerStatistics, isotropic
from plywise.env.calibration.channel_importance import channel_importance
from plywise.env.calibration.row_moments import RowMoments
from plywise.env.network.layer_outputs import layer_outputs
from plywise.env.network.network import Network
from plywise.env.task.batch import items_in
from plywise.env.task.samples import Samples

ROWS = 16384
"""Patches that a layer's moments are taken from."""
WIDE_ROWS = 8192
"""Patches of a layer of many features: as many for each feature of a block as the widest whole layer has."""
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
        samples: that were looked at.
        statistics: by layer name.
        outputs: moments of each layer's and remaining BatchNorm's output, by name.
    """

    samples: Samples
    statistics: dict[str, LayerStatistics]
    outputs: dict[str, Moments]

    @cached_property
    def sources(self) -> dict[str, str]:
        """The layers, by name, that read what another puts out, behind its ReLU where it has one: that one's name.

        All values that are kept of both are the same, for they are taken at the same places.
        """
        found: dict[str, str] = {}
        makers: dict[bytes, str] = {}
        for name, seen in self.statistics.items():
            source = makers.get(_content(seen.inputs))
            if source is not None:
                found[name] = source
            makers[_content(seen.outputs)] = name
        return found


def calibrate(network: Network, samples: Samples, seed: int = 0) -> Calibration:
    """Runs the network over calibration data, once forwards and once backwards (for the importance of channels).

    Args:
        network: what to calibrate.
        samples: of the training data.
        seed: of the choice of patches and values, and of the random importance.

    Raises:
        ModelError: if activations are not finite.
    """
    recorder = _Recorder(network, seed)
    with torch.no_grad(), layer_outputs(network, recorder.record):
        for batch in samples:
            recorder.share = items_in(batch) / len(samples)
            network.forward(network.model, batch)
    seen, outputs = (
        _for_all(network, recorder.statistics()),
        {name: _joined(found) for name, found in recorder.outputs.items()},
    )
    covariances = {name: found.covariance for name, found in seen.items()}
    deviations = {name: outputs[name].deviation for name in covariances}
    importance = channel_importance(network, samples, covariances, deviations, seed)
    roots = {group.leader: group.root for group in network.groups}
    statistics = {
        name: replace(found, importance=importance[name], root=roots.get(name)) for name, found in seen.items()
    }
    return Calibration(samples, statistics, outputs)


def _for_all(network: Network, seen: Mapping[str, LayerStatistics]) -> dict[str, LayerStatistics]:
    """Returns the statistics of each layer; one that shares its weight has the mean of all covariances, alike in size.

    So the weight suits the inputs of all: with 3 bits a language model's table that is its head loses a sixth less.
    """
    found = {layer.name: seen[layer.name] for layer in network.layers}
    for layer in network.layers:
        every = [seen[name].covariance for name in (layer.name, *layer.shares) if name in seen]
        if len(every) > 1:
            sizes = [each.diagonal(dim1=-2, dim2=-1).mean().clamp(min=1e-30) for each in every]
            relative = [each / size for each, size in zip(every, sizes, strict=True)]
            found[layer.name] = replace(seen[layer.name], covariance=sizes[0] * torch.stack(relative).mean(0))
    return found


def _content(values: Tensor) -> bytes:
    return (values + 0.0).numpy().tobytes()  # no zero is negative


def moments(outputs: Tensor, last: bool) -> Moments:
    """Returns the moments over all but the channel dimension, which is the last one or the one behind the batch."""
    shape = (-1, outputs.shape[-1], 1) if last else (*outputs.shape[:2], -1)
    blocks = outputs.reshape(shape)  # (n, out, positions)
    # One dimension after the other: torch takes five times as long over both at once.
    mean = blocks.mean(2).mean(0)
    variance = (blocks - mean[:, None]).square_().mean(2).mean(0)
    return Moments(mean, variance.sqrt())


def _joined(parts: Sequence[tuple[int, Moments]]) -> Moments:
    """Returns the moments over all parts, each with its weight (Chan et al., Updating Formulae, 1979)."""
    weights = torch.tensor([float(count) for count, _ in parts])
    means = torch.stack([found.mean for _, found in parts])
    mean = torch.einsum("p,pc->c", weights, means) / weights.sum()
    squares = torch.stack([found.deviation.square() for _, found in parts]) + (means - mean).square()
    return Moments(mean, (torch.einsum("p,pc->c", weights, squares) / weights.sum()).sqrt())


class _Recorder:
    """Collects what is seen of each layer, batch by batch.

    Attributes:
        outputs: for each layer and BatchNorm, by name, the moments of each batch and how many inputs it had.
        share: of all samples, those in the batch under way.
    """

    def __init__(self, network: Network, seed: int) -> None:
        self.layers = {layer.name: layer for layer in (*network.layers, *network.tied)}
        self.modules = network.modules
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        self.outputs: dict[str, list[tuple[int, Moments]]] = {}
        self.share = 1.0
        self._rows: dict[str, RowMoments] = {}
        self._values: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        self._counts: dict[str, Tensor] = {}

    def record(self, name: str, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        """Takes in a batch of one layer."""
        if not bool(torch.isfinite(outputs).all()):
            raise ModelError(f"{name} gives values that are not finite on the calibration data; check weights and data")
        self.outputs.setdefault(name, []).append((len(inputs), moments(outputs, channels_last(module))))
        layer = self.layers.get(name)
        if layer is None:
            return
        share = self.share
        if isinstance(module, nn.Embedding):
            self._counts[name] = self._counts.get(name, 0) + row_counts(module, inputs)
        else:
            features, positions = weight_matrices(module).shape[2], math.prod(weight_of(module).shape[2:])
            rows = patches(module, inputs, math.ceil((WIDE_ROWS if features > WIDE else ROWS) * share), self.generator)
            self._rows.setdefault(name, RowMoments(positions)).add(rows)
            # No product of two features is larger than the larger square.
            if not bool(torch.isfinite(self._rows[name].scatter.diagonal(dim1=1, dim2=2)).all()):
                raise ModelError(f"{name} sees inputs too large to square on the calibration data; normalise the data")
        before, after = self._values.setdefault(name, ([], []))
        count, seed = math.ceil(VALUES * share), self.seed + len(before)
        before.append(_some(inputs.float(), count, seed))
        after.append(_some(outputs if layer.relu is None else outputs.clamp(*layer.relu), count, seed))

    def statistics(self) -> dict[str, LayerStatistics]:
        """Returns what was seen of each layer, by name."""
        found = {}
        for name in self.layers:
            before, after = (torch.cat(values).sort().values for values in self._values[name])
            if name in self._rows:
                rows = self._rows[name]
                found[name] = LayerStatistics(rows.covariance, rows.mean, before, after)
            else:
                table = self.modules[name]
                assert isinstance(table, nn.Embedding)
                covariance, mean = isotropic(table.embedding_dim)
                frequency = row_frequency(self._counts[name])
                found[name] = LayerStatistics(covariance, mean, before, after, frequency=frequency)
        return found


def _some(values: Tensor, count: int, seed: int) -> Tensor:
    """Returns random values, the least and the largest among them; those of equal tensors are equal."""
    flat = values.flatten()
    places = torch.randint(flat.numel(), (count,), generator=torch.Generator().manual_seed(seed))
    return torch.cat([flat[places], flat.amin()[None], flat.amax()[None]])


def row_counts(layer: nn.Embedding, inputs: Tensor) -> Tensor:
    """Returns how often each row of an embedding is read `(rows,)`."""
    return torch.bincount(inputs.flatten(), minlength=layer.num_embeddings).float()


def row_frequency(counts: Tensor) -> Tensor:
    """Returns how often each row of an embedding is read `(rows,)`, one on average.

    Each row counts as read once more than it was, since a few hundred samples do not show every row.
    """
    return (counts + 1.0) / (counts + 1.0).mean()


def patches(layer: nn.Module, inputs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns up to `count` random unfolded inputs `(rows, groups, features)` in the order of the weights."""
    windows = _windows(layer, inputs)
    total = math.prod(windows.shape[: _outer(layer)])
    if total <= count:
        places = torch.arange(total)
    elif isinstance(layer, nn.Linear):
        places = torch.randperm(total, generator=generator)[:count]
    else:
        places = torch.randint(total, (count,), generator=generator)
    return _taken(layer, windows, places)


def patches_at(layer: nn.Module, inputs: Tensor, places: Tensor) -> Tensor:
    """Returns the unfolded inputs `(rows, groups, features)` of some outputs.

    Args:
        layer: a convolution or a linear layer.
        inputs: what it reads `(n, ...)`.
        places: `(rows,)` of the outputs, counted over all inputs and positions.
    """
    return _taken(layer, _windows(layer, inputs), places)


def _windows(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Returns a view `(n, *positions, channels, *kernel)` of what each output of a convolution sees; `(rows, in)`."""
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2)
    assert isinstance(layer, CONVOLUTIONS + TRANSPOSED)
    axes = len(layer.kernel_size)
    view = _stuffed(layer, inputs) if isinstance(layer, TRANSPOSED) else _padded(layer, inputs)
    steps = (1,) * axes if isinstance(layer, TRANSPOSED) else layer.stride
    for axis, (size, step, gap) in enumerate(zip(layer.kernel_size, steps, layer.dilation, strict=True)):
        view = view.unfold(2 + axis, (size - 1) * gap + 1, step)[..., ::gap]
    return view.movedim(1, axes + 1)


def _outer(layer: nn.Module) -> int:
    """Returns how many of the dimensions of `_windows` count outputs."""
    return 1 if isinstance(layer, nn.Linear) else 1 + len(weight_of(layer).shape[2:])


def _taken(layer: nn.Module, windows: Tensor, places: Tensor) -> Tensor:
    outer = _outer(layer)
    rows = windows[torch.unravel_index(places, windows.shape[:outer])]  # (rows, channels, *kernel)
    rows = rows.flip(tuple(range(2, 1 + outer))) if isinstance(layer, TRANSPOSED) else rows
    return rows.reshape(len(rows), groups_of(layer), -1)


def _padded(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)


def _stuffed(layer: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d, inputs: Tensor) -> Tensor:
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
