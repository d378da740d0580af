"""A small BERT (Devlin et al., 2019) that classifies texts."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class TextClasses:
    """What a text classifier puts out.

    Attributes:
        logits: `(n, classes)`.
        pooled: what they are made from, `(n, width)`.
    """

    logits: Tensor
    pooled: Tensor


class MaskedAttention(nn.Module):
    """Self-attention to the places that a mask leaves, with separate projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Maps tokens `(n, places, width)`, with a mask `(n, 1, 1, places)`, to their shape."""
        query, key, value = (
            layer(tokens).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (n, heads, places, head_dim)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class BertLayer(nn.Module):
    """Attention and a GELU perceptron, each with a shortcut and a LayerNorm behind the sum."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = MaskedAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.intermediate = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Maps tokens `(n, places, width)`, with a mask `(n, 1, 1, places)`, to their shape."""
        tokens = self.norm1(tokens + self.attention(tokens, mask))
        return self.norm2(tokens + self.output(F.gelu(self.intermediate(tokens))))  # type: ignore[no-any-return]


class Bert(nn.Module):
    """Embedded tokens and positions, layers, a pooler of the first token, a linear classifier.

    Args:
        vocabulary: different tokens.
        length: places at most.
        width: of a token.
        depth: number of layers.
        heads: of attention.
        classes: number of logits.
        dropout: share of the embedded and the pooled numbers that training leaves out.
    """

    def __init__(
        self, vocabulary: int, length: int, width: int, depth: int, heads: int, classes: int, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=0)
        self.positions = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(BertLayer(width, heads, 2 * width) for _ in range(depth))
        self.pooler = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> TextClasses:
        """Maps ids and mask `(n, places)`, where 0 is padding, to logits of the texts."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        tokens = self.dropout(self.norm(self.tokens(input_ids) + self.positions(places)))
        mask = attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            tokens = layer(tokens, mask)
        pooled = torch.tanh(self.pooler(tokens[:, 0]))
        return TextClasses(self.classifier(self.dropout(pooled)), pooled)
