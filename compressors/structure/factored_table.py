"""An embedding as a table of shorter vectors and the linear layer that makes them long again."""

import torch
from torch import Tensor, nn

from plywise.compressors.modules.composition import Chain
from plywise.compressors.modules.layers import weight_of
from plywise.compressors.statistics.statistics import LayerStatistics, table_moments


def factored_outline(layer: nn.Embedding, rank: int) -> nn.Sequential:
    """Returns an embedding of `rank` columns and a linear layer, both on the meta device."""
    table = torch.empty(layer.num_embeddings, rank, device="meta", dtype=layer.weight.dtype)
    mixing = nn.Linear(rank, layer.embedding_dim, device="meta", dtype=layer.weight.dtype)
    return Chain(nn.Embedding(layer.num_embeddings, rank, _weight=table), mixing).train(layer.training)


def factored_table(layer: nn.Embedding, statistics: LayerStatistics, rank: int) -> nn.Sequential:
    """Returns the embedding of least squared error among those of `rank` columns; rows count as often as they are read.

    The leading directions of the rows around their mean, which becomes the bias.
    Source: Lan et al., ALBERT, 2020, section 3.1 (the factors); found by a singular value decomposition.
    """
    table = weight_of(layer).double()
    # In units of the largest weight, so that tiny and huge weights do not leave float64 when they are squared.
    unit = table.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    assert statistics.frequency is not None
    covariance, mean = table_moments(table / unit, statistics.frequency)
    basis = torch.linalg.eigh(covariance).eigenvectors[:, -rank:]  # (width, rank)
    chain = factored_outline(layer, rank)
    values = (table / unit @ basis, basis * unit, (mean - basis @ (basis.T @ mean)) * unit)
    for (leaf, name), value in zip(
        ((chain[0], "weight"), (chain[1], "weight"), (chain[1], "bias")), values, strict=True
    ):
        setattr(leaf, name, _fixed(value, layer))
    return chain


def _fixed(value: Tensor, layer: nn.Embedding) -> nn.Parameter:
    return nn.Parameter(value.to(layer.weight.dtype).contiguous(), requires_grad=False)
