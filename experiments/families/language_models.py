"""Small language models over bytes: a GPT (Radford et al., 2019) and gated recurrent units (Cho et al., 2014)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CausalAttention(nn.Module):
    """Self-attention to the places before, with queries, keys and values from one linear layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(n, places, width)` to the same shape."""
        # (3, n, heads, places, head_dim)
        query, key, value = self.qkv(tokens).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class GPTBlock(nn.Module):
    """Attention and a GELU perceptron, each behind an RMSNorm (Zhang and Sennrich, 2019) and alongside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width)
        self.attention = CausalAttention(width, heads)
        self.norm2 = nn.RMSNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(n, places, width)` to the same shape."""
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))  # type: ignore[no-any-return]


def waves(context: int, width: int) -> Tensor:
    """Returns sines and cosines of the places `(context, width)` (Vaswani et al., 2017, section 3.5)."""
    angles = torch.arange(context)[:, None] * 10_000 ** (-torch.arange(0, width, 2) / width)
    return torch.cat([angles.sin(), angles.cos()], 1)


class GPT(nn.Module):
    """Embedded bytes plus learned positions, blocks, and a head that is the embedding's own matrix.

    Args:
        width: of a token.
        depth: number of blocks.
        heads: of attention.
        context: places at most.
        symbols: different tokens.
    """

    def __init__(self, width: int, depth: int, heads: int, context: int, symbols: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.position = nn.Parameter(waves(context, width) * 0.3)
        self.blocks = nn.Sequential(*(GPTBlock(width, heads) for _ in range(depth)))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, symbols, bias=False)
        nn.init.normal_(self.head.weight, std=width**-0.5)
        self.embedding.weight = self.head.weight

    def forward(self, symbols: Tensor) -> Tensor:
        """Maps symbols `(n, places)` to logits of the ones that follow `(n, places, symbols)`."""
        tokens = self.embedding(symbols) + self.position[: symbols.shape[1]]
        return self.head(self.norm(self.blocks(tokens)))  # type: ignore[no-any-return]


class GRULanguageModel(nn.Module):
    """Embedded symbols, recurrent layers, a linear head.

    Args:
        embedded: width of an embedded symbol.
        hidden: units of a recurrent layer.
        depth: recurrent layers.
        symbols: different tokens.
    """

    def __init__(self, embedded: int, hidden: int, depth: int = 1, symbols: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, embedded)
        self.recurrent = nn.GRU(embedded, hidden, depth, batch_first=True)
        self.head = nn.Linear(hidden, symbols)

    def forward(self, symbols: Tensor) -> Tensor:
        """Maps symbols `(n, places)` to logits of the ones that follow `(n, places, symbols)`."""
        states, _ = self.recurrent(self.embedding(symbols))
        return self.head(states)  # type: ignore[no-any-return]
