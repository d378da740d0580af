"""One layer of each kind that techniques meet, with statistics of correlated inputs."""

import copy
from functools import cache

import torch
from torch import nn

from plywise.compressors.modules.layers import CONVOLUTIONS, TRANSPOSED, bias_of, out_channels
from plywise.compressors.statistics.statistics import CRITERIA, LayerStatistics, isotropic
from plywise.env.calibration.calibration import ROWS, patches, row_counts, row_frequency
from plywise.env.calibration.row_moments import RowMoments

IMAGE, SIGNAL, VIDEO = (32, 12, 7, 7), (32, 12, 9), (16, 12, 4, 5, 5)

KINDS = {
    "conv1d": (lambda: nn.Conv1d(12, 16, 3, padding=1), SIGNAL),
    "conv1d-same": (lambda: nn.Conv1d(12, 10, 5, padding="same", bias=False), SIGNAL),
    "conv2d": (lambda: nn.Conv2d(12, 16, 3, padding=1), IMAGE),
    "conv2d-bare": (lambda: nn.Conv2d(12, 16, 3, bias=False), IMAGE),
    "conv2d-stride": (lambda: nn.Conv2d(12, 20, 3, stride=2, padding=1), IMAGE),
    "conv2d-dilation": (lambda: nn.Conv2d(12, 16, (3, 2), padding=(2, 1), dilation=2), IMAGE),
    "conv2d-reflect": (lambda: nn.Conv2d(12, 16, 3, padding=1, padding_mode="reflect"), IMAGE),
    "pointwise": (lambda: nn.Conv2d(12, 24, 1), IMAGE),
    "pointwise-stride": (lambda: nn.Conv2d(12, 24, 1, stride=2, bias=False), IMAGE),
    "conv3d": (lambda: nn.Conv3d(12, 16, 3, stride=(1, 2, 1), padding=1), VIDEO),
    "grouped": (lambda: nn.Conv2d(12, 16, 3, padding=1, groups=4), IMAGE),
    "depthwise": (lambda: nn.Conv2d(12, 12, 3, padding=1, groups=12), IMAGE),
    "transposed1d": (lambda: nn.ConvTranspose1d(12, 16, 4, stride=2, padding=1), SIGNAL),
    "transposed": (lambda: nn.ConvTranspose2d(12, 16, 3, stride=2, padding=1, output_padding=1, bias=False), IMAGE),
    "transposed-grouped": (lambda: nn.ConvTranspose2d(12, 8, (3, 2), padding=(0, 1), groups=4, dilation=2), IMAGE),
    "transposed-depthwise": (lambda: nn.ConvTranspose2d(12, 12, 2, stride=2, groups=12), IMAGE),
    "transposed3d": (lambda: nn.ConvTranspose3d(12, 8, (1, 2, 3), stride=2, padding=(0, 0, 1)), VIDEO),
    "embedding": (lambda: nn.Embedding(40, 12), (64, 9)),
    "linear": (lambda: nn.Linear(12, 16), (64, 12)),
    "linear-tokens": (lambda: nn.Linear(12, 40, bias=False), (8, 9, 12)),
}


@cache
def _layer(kind, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return KINDS[kind][0]().eval()


def layer_of(kind, seed=0):
    """Returns a layer of its own in eval mode."""
    return copy.deepcopy(_layer(kind, seed))


@cache
def traits_of(kind):
    """Returns by what techniques tell layers apart, by name: settings are tested with each of these values."""
    layer = _layer(kind, 0)
    groups, kernel, stride = (getattr(layer, name, None) for name in ("groups", "kernel_size", "stride"))
    families = {"convolution": CONVOLUTIONS, "transposed": TRANSPOSED, "linear": nn.Linear, "table": nn.Embedding}
    return {
        "layer family": next(name for name, types in families.items() if isinstance(layer, types)),
        "layer groups": "one" if groups in (None, 1) else "depthwise" if groups == layer.in_channels else "some",
        "layer wide kernel": max(kernel or [1]) > 1,
        "layer stride": max(stride or [1]) > 1,
        "layer bias": bias_of(layer) is not None,
    }


def supported(technique, kind):
    """Returns whether a technique takes layers of a kind, without the copy that `layer_of` makes."""
    return technique.unsupported(_layer(kind, 0)) is None


@cache
def inputs_of(kind):
    """Returns inputs whose channels are correlated and not centred."""
    shape = KINDS[kind][1]
    generator = torch.Generator().manual_seed(1)
    if kind == "embedding":
        return torch.randint(40, shape, generator=generator) * torch.randint(2, shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    channel = -1 if kind.startswith("linear") else 1
    mixed = noise + 0.7 * noise.roll(1, channel) + 0.5 * noise.roll(3, channel)
    return torch.relu(mixed) * 2


def statistics_of(layer, inputs, seed=2):
    """Returns what calibration would record at a layer."""
    generator = torch.Generator().manual_seed(seed)
    rows, table = RowMoments(), isinstance(layer, nn.Embedding)
    if not table:
        rows.add(patches(layer, inputs, ROWS, generator))
    covariance, mean = isotropic(layer.embedding_dim) if table else (rows.covariance, rows.mean)
    with torch.no_grad():
        outputs = layer(inputs)
    importance = {name: torch.rand(out_channels(layer), generator=generator) for name in CRITERIA}
    return LayerStatistics(
        covariance,
        mean,
        inputs.float().flatten().sort().values,
        outputs.flatten().sort().values,
        importance,
        row_frequency(row_counts(layer, inputs)) if table else None,
    )


@cache
def _statistics(kind):
    return statistics_of(_layer(kind, 0), inputs_of(kind))


def prepared(kind):
    """Returns a layer of its own, its inputs and its statistics."""
    return layer_of(kind), inputs_of(kind), _statistics(kind)
