"""A small U-Net (Ronneberger et al., 2015), with BatchNorm and padded convolutions."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def double_convolution(channels_in: int, channels: int) -> nn.Sequential:
    """Builds two 3x3 convolutions with BatchNorm and ReLU."""
    return nn.Sequential(
        *(nn.Conv2d(channels_in, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()),
        *(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()),
    )


class UNet(nn.Module):
    """Convolutions at smaller and smaller sizes and back, each size joined with what was there on the way down.

    Args:
        widths: channels at each size, from the largest on.
        classes: logits of a pixel.
        channels: of an image; its sides must be multiples of two to the number of sizes less one.
    """

    def __init__(self, widths: Sequence[int], classes: int, channels: int = 1) -> None:
        super().__init__()
        self.down = nn.ModuleList(double_convolution(*pair) for pair in pairwise((channels, *widths)))
        self.pool = nn.MaxPool2d(2)
        steps = list(pairwise(widths))[::-1]
        self.grow = nn.ModuleList(nn.ConvTranspose2d(wide, narrow, 2, 2) for narrow, wide in steps)
        self.up = nn.ModuleList(double_convolution(2 * narrow, narrow) for narrow, _ in steps)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(n, channels, h, w)` to logits of their pixels `(n, classes, h, w)`."""
        kept: list[Tensor] = []
        for step in self.down:
            kept.append(step(self.pool(kept[-1]) if kept else images))
        found = kept.pop()
        for grow, step in zip(self.grow, self.up, strict=True):
            found = step(torch.cat([kept.pop(), grow(found)], 1))
        return self.head(found)  # type: ignore[no-any-return]
