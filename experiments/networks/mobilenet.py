"""Networks of depthwise convolutions: MobileNet-V2 (Sandler et al., 2018) and plain separable ones (Howard, 2017)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

MOBILENET_V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""(expansion, width, blocks, stride) of each stage, with stride 1 at the start as is usual for 32x32 images."""


def conv_bn(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Builds a convolution and its BatchNorm."""
    conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(width)]


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1; add the input where the shapes agree."""

    def __init__(self, channels: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = channels * expansion
        expand = [*conv_bn(channels, hidden, 1), nn.ReLU6()] if expansion != 1 else []
        depthwise = [*conv_bn(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()]
        self.conv = nn.Sequential(*expand, *depthwise, *conv_bn(hidden, width, 1))
        self.adds_input = stride == 1 and channels == width

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps `(n, channels, h, w)` to `(n, width, h / stride, w / stride)`."""
        outputs: Tensor = self.conv(inputs)
        return inputs + outputs if self.adds_input else outputs


class MobileNetV2(nn.Module):
    """Inverted residuals between a 3x3 stem and a 1x1 head, average pooling, one linear layer.

    Args:
        stages: (expansion, width, blocks, stride) of each.
        stem: channels of the first convolution.
        head: channels of the last convolution.
        in_channels: of the images.
        classes: number of logits.
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, int, int, int]] = MOBILENET_V2_STAGES,
        stem: int = 32,
        head: int = 1280,
        in_channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Sequential(*conv_bn(in_channels, stem, 3), nn.ReLU6())]
        channels = stem
        for expansion, width, blocks, stride in stages:
            for block in range(blocks):
                layers.append(InvertedResidual(channels, width, expansion, stride if block == 0 else 1))
                channels = width
        layers.append(nn.Sequential(*conv_bn(channels, head, 1), nn.ReLU6()))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(head, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(n, c, h, w)` to logits `(n, classes)`."""
        features = F.adaptive_avg_pool2d(self.features(images), 1)
        return self.classifier(features.flatten(1))  # type: ignore[no-any-return]


class SeparableBlock(nn.Module):
    """A 3x3 depthwise and a 1x1 convolution, each with BatchNorm and ReLU."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.depthwise, self.bn1 = conv_bn(channels, channels, 3, stride, groups=channels)
        self.pointwise, self.bn2 = conv_bn(channels, width, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps `(n, channels, h, w)` to `(n, width, h / stride, w / stride)`."""
        features = F.relu(self.bn1(self.depthwise(inputs)))
        return F.relu(self.bn2(self.pointwise(features)))


class SeparableNet(nn.Module):
    """Separable blocks behind a 3x3 stem, average pooling, one linear layer."""

    def __init__(self, blocks: Sequence[tuple[int, int]], stem: int, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem, self.bn = conv_bn(in_channels, stem, 3)
        channels = [stem, *(width for width, _ in blocks)]
        self.blocks = nn.Sequential(
            *(SeparableBlock(before, width, stride) for before, (width, stride) in zip(channels, blocks, strict=False))
        )
        self.classifier = nn.Linear(channels[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(n, c, h, w)` to logits `(n, classes)`."""
        features = self.blocks(F.relu(self.bn(self.stem(images))))
        return self.classifier(features.mean((2, 3)))  # type: ignore[no-any-return]
