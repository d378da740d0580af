"""Residual networks for small images (He et al., 2016, section 4.2), with both kinds of shortcut."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm alongside a shortcut: identity, or a 1x1 projection (option B)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps `(n, channels, h, w)` to `(n, width, h / stride, w / stride)`."""
        features = self.relu(self.bn1(self.conv1(inputs)))
        features = self.bn2(self.conv2(features))
        return self.relu(features + self.shortcut(inputs))  # type: ignore[no-any-return]


class OptionABlock(nn.Module):
    """The same alongside a parameter-free shortcut (option A): every other pixel, missing channels zero."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.padding = (width - channels) // 2

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps `(n, channels, h, w)` to `(n, width, h / stride, w / stride)`."""
        features = F.relu(self.bn1(self.conv1(inputs)))
        features = self.bn2(self.conv2(features))
        shortcut = inputs
        if self.stride != 1 or self.padding:
            thinned = inputs[:, :, :: self.stride, :: self.stride]
            shortcut = F.pad(thinned, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(features + shortcut)


class ResNet(nn.Module):
    """A 3x3 convolution, three stages of blocks that halve the size, average pooling, one linear layer.

    Args:
        block: kind of block.
        blocks: number of blocks of each stage; (3, 3, 3) makes ResNet-20.
        widths: channels of each stage.
        in_channels: of the images.
        classes: number of logits.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[OptionABlock],
        blocks: Sequence[int],
        widths: Sequence[int] = (16, 32, 64),
        in_channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        channels = (widths[0], *widths)
        stages = [
            nn.Sequential(
                block(channels[stage], width, 1 if stage == 0 else 2),
                *(block(width, width, 1) for _ in range(blocks[stage] - 1)),
            )
            for stage, width in enumerate(widths)
        ]
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(n, c, h, w)` to logits `(n, classes)`."""
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.linear(F.adaptive_avg_pool2d(features, 1).flatten(1))  # type: ignore[no-any-return]


def cifar_resnet(depth: int) -> ResNet:
    """Builds the CIFAR-10 ResNet of a depth 6n + 2, with option-A shortcuts."""
    assert depth % 6 == 2
    return ResNet(OptionABlock, [(depth - 2) // 6] * 3)
