"""A small DenseNet (Huang et al., 2017): every layer sees the concatenation of all before it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution; the new channels follow the inputs."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps `(n, channels, h, w)` to `(n, channels + growth, h, w)`."""
        return torch.cat([inputs, self.conv(F.relu(self.bn(inputs)))], 1)


class Transition(nn.Module):
    """BatchNorm, ReLU, a 1x1 convolution that halves the channels, 2x2 average pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps `(n, channels, h, w)` to `(n, channels / 2, h / 2, w / 2)`."""
        return F.avg_pool2d(self.conv(F.relu(self.bn(inputs))), 2)


class DenseNet(nn.Module):
    """Two dense blocks with a transition between them, average pooling, one linear layer."""

    def __init__(self, stem: int = 24, growth: int = 12, layers: int = 4, in_channels: int = 1, classes: int = 10):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        wide = stem + layers * growth
        self.block1 = nn.Sequential(*(DenseLayer(stem + i * growth, growth) for i in range(layers)))
        self.transition = Transition(wide)
        self.block2 = nn.Sequential(*(DenseLayer(wide // 2 + i * growth, growth) for i in range(layers)))
        self.bn = nn.BatchNorm2d(wide // 2 + layers * growth)
        self.classifier = nn.Linear(wide // 2 + layers * growth, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(n, c, h, w)` to logits `(n, classes)`."""
        features = self.block2(self.transition(self.block1(self.conv(images))))
        features = F.adaptive_avg_pool2d(F.relu(self.bn(features)), 1)
        return self.classifier(features.flatten(1))  # type: ignore[no-any-return]
