"""What one pass over calibration data records at a layer: the basis of every closed-form repair."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.compressors.modules.branches import Branches
from plywise.compressors.modules.channel_order import ChannelOrder
from plywise.compressors.modules.composition import Extent, dense_kernel, extent_of, on_window, windows
from plywise.compressors.modules.layers import bias_of, groups_of, weight_matrices, weight_of
from plywise.compressors.modules.rectifier import Rectifier, rectified
from plywise.compressors.statistics.error_feedback import ErrorFeedback
from plywise.compressors.statistics.feature_blocks import WIDE

CRITERIA = (
    "l1",
    "l2",
    "median",
    "scale",
    "taylor",
    "taylor_batch",
    "taylor_second",
    "reconstruction",
    "random",
)
"""By what the channels of a layer can be ranked; `env/calibration/channel_importance.py` says how."""


CHAINS = 2
"""Chains whose leaves' statistics are kept: recipes that begin with the same structure follow each other."""


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Moments of a layer's unfolded inputs and ranges of its activations.

    A feature is one entry of a patch: `in_channels / groups * kh * kw` of them for a convolution (in the
    order of its weight), `in_features` for a linear layer. What a transposed convolution sees at an output position is
    zero where no input meets the kernel. The inputs of an embedding pick rows of its table, as they are: its features
    are the table's columns, all of which count alike, and `frequency` says how much each row does.

    Attributes:
        covariance: `(groups, features, features)` float32, of the inputs around their mean.
        mean: `(groups, features)` float32.
        inputs: `(n,)` sorted sample of input values.
        outputs: `(n,)` sorted sample of output values, behind the ReLU where one follows directly.
        importance: for each of CRITERIA the importance of every output channel `(out,)`, summed over the layers that
            share the channel.
        frequency: `(rows,)` how often an embedding reads each of its rows, one on average; None for other layers.
        root: `(out,)` equal for output channels that stay or go together, such as those of a head in attention, counted
            from 0; None where each stands alone.
    """

    covariance: Tensor
    mean: Tensor
    inputs: Tensor
    outputs: Tensor
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    frequency: Tensor | None = None
    root: Tensor | None = None

    @cached_property
    def feedback(self) -> ErrorFeedback:
        """Error feedback for these inputs, prepared once for all recipes."""
        return ErrorFeedback.of(self.covariance)

    @classmethod
    def white(cls, layer: nn.Module) -> "LayerStatistics":
        """Returns statistics of white noise: what to assume of a layer without calibration data."""
        groups, features = groups_of(layer), weight_matrices(layer).shape[2]
        rows = weight_of(layer).float().flatten(1).norm(dim=1)
        spread = torch.linspace(-3.0, 3.0, 256)
        if isinstance(layer, nn.Embedding):
            return cls(*isotropic(features), spread, spread, frequency=torch.ones(layer.num_embeddings))
        return cls(
            torch.eye(features).expand(groups, features, features).clone(),
            torch.zeros(groups, features),
            spread,
            spread * float(rows.max()),
            dict.fromkeys(CRITERIA, rows),
        )


def isotropic(features: int) -> tuple[Tensor, Tensor]:
    """Returns covariance `(1, features, features)` and mean `(1, features)` for which all features count alike."""
    return torch.eye(features)[None], torch.zeros(1, features)


def table_moments(table: Tensor, frequency: Tensor) -> tuple[Tensor, Tensor]:
    """Returns covariance `(width, width)` and mean `(width,)` of the rows that are read of a table `(rows, width)`."""
    share = (frequency.to(table.dtype) / frequency.sum())[:, None]
    mean = (share * table).sum(0)
    centred = table - mean
    return centred.T @ (share * centred), mean


@lru_cache(CHAINS)
def chain_statistics(chain: nn.Sequential, statistics: LayerStatistics) -> tuple[LayerStatistics, ...]:
    """Returns the statistics at each leaf of a chain that replaces one ungrouped layer; neither may change afterwards.

    They follow in closed form from those of the layer: each leaf maps the window that the chain looks at to a
    smaller one, and sees what its kernel covers, averaged over the places of the window.
    """
    if isinstance(chain[0], nn.Embedding):
        return tuple(_factored_table(chain, statistics))
    found: list[LayerStatistics] = []
    covariance, mean = statistics.covariance[0], statistics.mean[0]  # over (channels * positions)
    kernels = [dense_kernel(leaf) for leaf in chain]
    extent = extent_of(kernels)
    for place, (leaf, kernel) in enumerate(zip(chain, kernels, strict=True)):
        height, width = kernel.shape[2:]
        seen = windows(kernel.shape[1], extent, (height, width)).view(
            -1, groups_of(leaf), kernel[0].numel() // groups_of(leaf)
        )
        inner = covariance[seen[..., :, None], seen[..., None, :]].mean(0), mean[seen].mean(0)
        last = place == len(chain) - 1
        samples = statistics.inputs if place == 0 else _spread(*inner)
        if place and isinstance(chain[place - 1], Rectifier):
            samples = found[place - 1].inputs.clamp(min=0)
        found.append(replace(statistics, covariance=inner[0], mean=inner[1], inputs=samples))
        if place and not (last and isinstance(leaf, ChannelOrder)):  # behind a gather lie the layer's own outputs
            behind = samples.clamp(min=0) if isinstance(leaf, Rectifier) else samples
            found[place - 1] = replace(found[place - 1], outputs=behind)
        if last:
            break
        covariance, mean = _moved(kernel, extent, covariance, mean)
        extent = (extent[0] - height + 1, extent[1] - width + 1)
        if isinstance(leaf, Rectifier):
            covariance, mean, _ = rectified(covariance, mean)
        mean = mean + _bias(leaf, len(kernel)).repeat_interleave(extent[0] * extent[1])
    return tuple(found)


def _moved(kernel: Tensor, extent: Extent, covariance: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Returns covariance and mean of what a kernel `(out, in, height, width)` puts out at all places of a window."""
    if len(mean) <= WIDE:
        matrix = on_window(kernel, extent)
        return matrix @ covariance @ matrix.T, matrix @ mean
    # The same sums, without the zeros of the matrix, which are most of it.
    half = F.conv2d(covariance.view(len(mean), -1, *extent), kernel).flatten(1)  # (features, out * places)
    both = F.conv2d(half.T.reshape(half.shape[1], -1, *extent), kernel).flatten(1)
    return both, F.conv2d(mean.view(1, -1, *extent), kernel).flatten()


def branch_statistics(branches: Branches, statistics: LayerStatistics) -> list[LayerStatistics]:
    """Returns the statistics at each of the branches that together take the place of one ungrouped layer."""
    kernels = [dense_kernel(branch) for branch in branches]
    extent = max(kernel.shape[2] for kernel in kernels), max(kernel.shape[3] for kernel in kernels)
    found = []
    for kernel in kernels:
        places = windows(kernel.shape[1], extent, (kernel.shape[2], kernel.shape[3]))
        seen = places[len(places) // 2]  # of odd extents, the one in the middle
        inner = statistics.covariance[:, seen][:, :, seen], statistics.mean[:, seen]
        found.append(replace(statistics, covariance=inner[0], mean=inner[1]))
    return found


def _bias(leaf: nn.Module, outputs: int) -> Tensor:
    if isinstance(leaf, Branches):
        return torch.cat([_bias(branch, len(weight_of(branch))) for branch in leaf])
    bias = bias_of(leaf)
    return torch.zeros(outputs) if bias is None else bias.float()


def _factored_table(chain: nn.Sequential, statistics: LayerStatistics) -> list[LayerStatistics]:
    """Returns the statistics of an embedding and of the linear layer behind it, which weighs its columns."""
    table, mixing = weight_of(chain[0]).float(), weight_of(chain[1]).float()
    frequency = statistics.frequency
    assert frequency is not None
    covariance, mean = table_moments(table, frequency)
    # Only how the columns compare counts; in units of the largest weight the squares do not leave float32.
    mixing = mixing / mixing.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    first = replace(statistics, covariance=(mixing.T @ mixing)[None], mean=torch.zeros_like(mean)[None])
    behind = replace(statistics, covariance=covariance[None], mean=mean[None], frequency=None)
    return [first, replace(behind, inputs=_spread(covariance, mean))]


def _spread(covariance: Tensor, mean: Tensor, count: int = 64) -> Tensor:
    """Returns sorted values spread as normal variables of these moments: a stand-in for a sample."""
    quantiles = torch.special.ndtri((torch.arange(count) + 0.5) / count * 0.9998 + 0.0001)
    deviation = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    values: Tensor = (mean[..., None] + deviation[..., None] * quantiles).flatten().sort().values
    return values
