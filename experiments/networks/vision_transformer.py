"""Small vision transformers (Dosovitskiy et al., 2021), with the projections of attention as linear layers.

Two 3x3 convolutions precede the patches (Xiao et al., 2021): trained on a thousand images, patches of raw pixels
stay below 97 %.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention over tokens with separate query, key, value and output projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads  # kept rather than their number, which follows from what pruning leaves
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(n, tokens, width)` to the same shape."""
        query, key, value = (
            layer(tokens).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (n, heads, tokens, head_dim)
            for layer in (self.query, self.key, self.value)
        )
        weights = torch.softmax(query @ key.transpose(-2, -1) * self.head_dim**-0.5, -1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention and a GELU perceptron, each behind a LayerNorm and alongside a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `(n, tokens, width)` to the same shape."""
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """Two 3x3 convolutions, patches as tokens with learned positions, transformer blocks, one linear layer.

    Args:
        width: of a token.
        depth: number of blocks.
        heads: of attention.
        hidden: width inside the perceptrons.
        class_token: whether the logits come from a token of their own; else from the mean of all tokens.
        patch: side of a patch, pixels.
        size: side of an image, pixels.
        in_channels: of the images.
        classes: number of logits.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        *,
        class_token: bool,
        patch: int = 2,
        size: int = 8,
        in_channels: int = 1,
        classes: int = 10,
    ) -> None:
        super().__init__()
        tokens = (size // patch) ** 2 + class_token
        self.stem = nn.Sequential(
            *(nn.Conv2d(in_channels, width // 2, 3, padding=1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU()),
            *(nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU()),
        )
        self.patches = nn.Conv2d(width // 2, width, patch, patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02) if class_token else None
        self.position = nn.Parameter(torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(n, c, size, size)` to logits `(n, classes)`."""
        tokens = self.patches(self.stem(images)).flatten(2).transpose(1, 2)  # (n, tokens, width)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], 1)
        tokens = self.norm(self.blocks(tokens + self.position))
        return self.head(tokens.mean(1) if self.class_token is None else tokens[:, 0])  # type: ignore[no-any-return]
