"""A small detector in one stage without anchors (Ge et al., YOLOX, 2021), which sees an image at two scales."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def convolution(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    """Builds a 3x3 convolution with BatchNorm and SiLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.SiLU()
    )


class Detector(nn.Module):
    """Convolutions down to the coarse scale; what they see there is joined to the fine one; a head for each.

    Args:
        width: channels at the full size; twice, three and four times as many at the smaller ones.
        outputs: numbers for each cell, of which the first is the logit of there being something.
        channels: of an image.
    """

    def __init__(self, width: int, outputs: int, channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(channels, width), convolution(width, 2 * width, 2))
        self.fine = nn.Sequential(convolution(2 * width, 3 * width, 2), convolution(3 * width, 3 * width))
        self.coarse = nn.Sequential(convolution(3 * width, 4 * width, 2), convolution(4 * width, 4 * width))
        self.lateral = nn.Conv2d(4 * width, 2 * width, 1)
        self.joined = convolution(5 * width, 3 * width)
        self.fine_head = nn.Conv2d(3 * width, outputs, 1)
        self.coarse_head = nn.Conv2d(4 * width, outputs, 1)
        for head in (self.fine_head, self.coarse_head):
            assert head.bias is not None
            nn.init.zeros_(head.bias)
            head.bias.data[0] = -4  # few cells hold something (Lin et al., Focal Loss, 2017, section 3.3)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps images `(n, channels, h, w)` to `[(n, outputs, h/4, w/4), (n, outputs, h/8, w/8)]`."""
        fine = self.fine(self.stem(images))
        coarse = self.coarse(fine)
        wide = F.interpolate(self.lateral(coarse), scale_factor=2.0, mode="nearest")
        joined = self.joined(torch.cat([fine, wide], 1))
        return [self.fine_head(joined), self.coarse_head(coarse)]
