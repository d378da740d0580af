"""Refits the weights of a layer to what it really sees, behind other layers that are compressed.

Source: He et al., Channel Pruning for Accelerating Very Deep Neural Networks, 2017, sections 3.1 (step ii, on the
realised inputs) and 3.2 (what is added alongside a layer is made up for, too). Departures: weights are pulled towards
those that the layer had, not towards zero; zeros stay zero, and weights stay in their format.
"""

import torch
from torch import Tensor, nn

from plywise.compressors.formats.weight_format import short, weight_format
from plywise.compressors.modules.layers import CONVOLUTIONS, TRANSPOSED, bias_of, set_weight, weight_matrices, weight_of
from plywise.compressors.sparsity.sparse_fit import descended
from plywise.env.calibration.calibration import patches_at

WORTH = 0.03
"""Share of the variance of its outputs that a layer must be off by: what is hardly disturbed is left as it is."""

RIDGE = 0.3
"""Pull towards the weights before, in mean variances of an input: a few thousand rows tell little of most weights."""

LEAST_ROWS, ROWS_A_FEATURE = 256, 32
"""Rows that are looked at, at least and for each weight of an output: so many tell as much as all."""

STEPS = 10
"""Of conjugate gradients: with that much pull they are near the end."""


def refits(leaf: nn.Module) -> bool:
    """Returns whether it is of a kind that can be refitted: a convolution or a linear layer."""
    return isinstance(leaf, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear))


def rows_for(leaf: nn.Module) -> int:
    """Returns how many rows its refit looks at."""
    return max(LEAST_ROWS, ROWS_A_FEATURE * weight_matrices(leaf).shape[2])


def refit(leaf: nn.Module, inputs: Tensor, missing: Tensor, variance: float, places: Tensor) -> bool:
    """Changes the weights so that the outputs come nearer to what they should be; their means stay, at these places.

    Args:
        leaf: as `refits` wants it.
        inputs: what it reads `(n, ...)`.
        missing: `(rows, out)` what must be added to its outputs.
        variance: of what these should be, summed over channels.
        places: `(rows,)` where, counted over all inputs and positions.

    Returns:
        Whether they were changed.
    """
    missing, places = missing[: rows_for(leaf)], places[: rows_for(leaf)]
    missing = missing - missing.mean(0)
    if float(missing.square().sum()) <= WORTH * len(missing) * variance:
        return False
    seen = patches_at(leaf, inputs, places).float()
    mean = seen.mean(0)
    seen = (seen - mean).transpose(0, 1)  # (groups, rows, features)
    weights = weight_matrices(leaf)
    groups, rows, features = seen.shape
    # In units of the deviations, to which the pull is added.
    spread = seen.square().mean(1)
    pulled = spread + RIDGE * spread.mean(1, keepdim=True) + torch.finfo(torch.float32).tiny
    deviation, pull = pulled.sqrt()[:, None], (1.0 - spread / pulled)[:, None]
    seen = seen / deviation
    across = seen.transpose(1, 2)
    covariance = across @ seen if features <= rows else None  # else to multiply twice is less to do

    def metric(change: Tensor) -> Tensor:
        image = (change @ across) @ seen if covariance is None else change @ covariance
        return image / rows + change * pull

    free = weights != 0
    slope = missing.T.reshape(groups, -1, rows) @ seen / rows * free
    change = descended(metric, slope, free, STEPS, 1e-10 * slope.square().sum(-1, keepdim=True))
    fmt, whole = weight_format(leaf), weight_of(leaf)
    changed = weights + change / deviation
    if fmt is not None:
        changed = fmt.decode(fmt.encode(changed.view_as(whole))).view_as(weights) * free
        change = (changed - weights) * deviation
        gained = ((2.0 * slope - metric(change)) * change).sum(-1, keepdim=True)
        changed = torch.where(gained > 0, changed, weights)  # where rounding leaves something of it
    if not bool(changed.isfinite().all()) or torch.equal(changed, weights):
        return False
    shift = torch.einsum("gof,gf->go", changed - weights, mean).flatten()
    bias = bias_of(leaf)
    bias = -shift if bias is None else bias - shift
    set_weight(leaf, changed.view_as(whole).to(whole.dtype))
    leaf.bias = nn.Parameter((bias if fmt is None else short(bias)).to(whole.dtype), requires_grad=False)
    return True
