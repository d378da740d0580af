"""Least squares for all leaves of a chain at once, against the layer's outputs on the data.

The factors of a decomposition start in closed form, one after the other; this brings them to the nearest joint
optimum of the output error, which costs a fraction of a second and halves the error of spatial decompositions.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from plywise.compressors.modules.composition import composed
from plywise.compressors.statistics.feature_blocks import FeatureBlocks

STEPS = 30
"""Steps of L-BFGS: ResNet-20's layers have then come within 2 % of the error that they converge to."""

WORK = 2e11
"""Multiply-adds of one fit, at most: layers of thousands of features get fewer steps."""


def fitted(
    kernels: Sequence[Tensor],
    target: Tensor,
    covariance: Tensor,
    compose: Callable[[Sequence[Tensor]], Tensor] = composed,
) -> list[Tensor]:
    """Returns the kernels, in float32 and their shapes, with no larger output error than those given.

    Args:
        kernels: of the chain, where the search starts.
        target: `(out, features)` weights of the layer that the chain replaces.
        covariance: `(features, features)` of its inputs, positive definite, float64.
        compose: maps the kernels to `(out, in, height, width)`.
    """
    blocks = FeatureBlocks.of(covariance)
    root = blocks.cholesky(covariance).float()
    wanted = blocks.times(target.float(), root)
    scale = wanted.square().sum()
    start = [kernel.float().contiguous() for kernel in kernels]
    steps = min(STEPS, int(WORK / (3 * target.numel() * target.shape[1])))
    if steps < 1 or not bool(scale > 0):
        return start

    def error(found: Sequence[Tensor]) -> Tensor:
        share: Tensor = (blocks.times(compose(found).flatten(1), root) - wanted).square().sum() / scale
        return share

    # The step sizes of L-BFGS suit unknowns of one size, so each kernel is measured in its own.
    sizes = [kernel.square().mean().sqrt().clamp(min=1e-30) for kernel in start]
    unknown = [(kernel / size).requires_grad_(True) for kernel, size in zip(start, sizes, strict=True)]
    optimiser = torch.optim.LBFGS(unknown, max_iter=steps, history_size=20, line_search_fn="strong_wolfe")

    def rescaled() -> list[Tensor]:
        return [kernel * size for kernel, size in zip(unknown, sizes, strict=True)]

    def closure() -> Tensor:
        loss = error(rescaled())
        for kernel, gradient in zip(unknown, torch.autograd.grad(loss, unknown), strict=True):
            kernel.grad = gradient.contiguous()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    found = [kernel.detach() for kernel in rescaled()]
    return found if bool(error(found) <= error(start)) else start
