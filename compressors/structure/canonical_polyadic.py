"""Canonical polyadic decomposition of a kernel: a 1x1 kernel, a filter for each channel, and a 1x1 kernel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from plywise.compressors.statistics.error_feedback import damped

ROUNDS = 30
"""Times that each factor is fitted in turn; the joint fit on the data comes behind it."""

WORK = 5e10
"""Multiply-adds of all rounds, at most: of layers of thousands of features there are fewer."""


def polyadic_start(whole: Tensor, covariance: Tensor, rank: int) -> list[Tensor]:
    """Returns kernels `(rank, in, 1, 1)`, `(rank, 1, height, width)`, `(out, rank, 1, 1)` by alternating least squares.

    The input side is whitened by the covariance of the channels, so that it is about the output's error that falls.
    Source: Lebedev et al., Speeding-up CNNs Using Fine-tuned CP-Decomposition, 2015, section 3; both spatial axes in
    one factor as in Astrid and Lee, CP-decomposition with Tensor Power Method for CNN Compression, 2017, section 3.

    Args:
        whole: `(out, in, height, width)`.
        covariance: `(in * height * width, ...)` of the unfolded inputs, positive definite.
        rank: may exceed the channels on both sides.
    """
    inputs, height, width = whole.shape[1:]
    positions = height * width
    channel = covariance.view(inputs, positions, inputs, positions).diagonal(dim1=1, dim2=3).mean(-1)
    root = torch.linalg.cholesky(channel)
    tensor = torch.einsum("oip,ij->ojp", whole.flatten(2), root)
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(size, rank, generator=generator, dtype=torch.float64) for size in tensor.shape]
    for _ in range(min(ROUNDS, max(1, int(WORK / (3 * tensor.numel() * rank))))):
        for place, sizes in enumerate(("ojp,jr,pr->or", "ojp,or,pr->jr", "ojp,or,jr->pr")):
            others = [factor for other, factor in enumerate(factors) if other != place]
            moment = (others[0].T @ others[0]) * (others[1].T @ others[1])
            found = torch.linalg.solve(damped(moment[None], 1e-6)[0], torch.einsum(sizes, tensor, *others).T).T
            # The last factor keeps the size of all.
            factors[place] = found if place == 2 else found / found.norm(dim=0).clamp(min=1e-30)
    mix, project, filters = factors
    size = filters.abs().amax(0).clamp(min=1e-30)
    project = torch.linalg.solve_triangular(root, project.T, upper=False, left=False)  # rows that whitening leads to
    return [
        project[..., None, None],
        (filters / size).T.reshape(rank, 1, height, width),
        (mix * size)[..., None, None],
    ]


def polyadic(kernels: Sequence[Tensor]) -> Tensor:
    """Returns the kernel `(out, in, positions)` that the three amount to; differentiable in each of them."""
    project, filters, mix = (kernel.flatten(1) for kernel in kernels)
    return torch.einsum("or,rp,ri->oip", mix, filters, project)
