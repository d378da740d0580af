"""What one pass over calibration data records at a layer: the basis of every closed-form repair."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class LayerStatistics:
    """Moments of a layer's unfolded inputs and ranges of its activations.

    A feature is one entry of a patch: `in_channels / groups * kh * kw` of them for a convolution (in the
    order of its weight), `in_features` for a linear layer.

    Attributes:
        covariance: `(groups, features, features)` float32, of the inputs around their mean.
        mean: `(groups, features)` float32.
        inputs: `(n,)` sorted sample of input values.
        outputs: `(n,)` sorted sample of output values, behind the ReLU where one follows directly.
        importance: for each criterion (`l2`, `taylor`) the importance of every output channel `(out,)`, summed
            over the layers that share the channel.
    """

    covariance: Tensor
    mean: Tensor
    inputs: Tensor
    outputs: Tensor
    importance: Mapping[str, Tensor] = field(default_factory=dict)
