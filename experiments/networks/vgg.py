"""Plain stacks of convolutions: VGG (Simonyan and Zisserman, 2015) and all-convolutional networks."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

POOL = 0
VGG16_WIDTHS = (64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, 512, 512, 512, POOL, 512, 512, 512, POOL)


class VGG(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU modules, max pooling, one linear layer.

    Args:
        widths: channels of each convolution, `POOL` where the size halves.
        in_channels: of the images.
        features: that reach the linear layer: last channels times the area left.
        classes: number of logits.
    """

    def __init__(self, widths: Sequence[int], in_channels: int, features: int, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in widths:
            if width == POOL:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(n, c, h, w)` to logits `(n, classes)`."""
        return self.classifier(self.features(images).flatten(1))  # type: ignore[no-any-return]


class AllConvolutional(nn.Module):
    """Strides in place of pooling and a 1x1 convolution in place of the linear layer (Springenberg et al., 2015)."""

    def __init__(self, in_channels: int = 1, width: int = 24, classes: int = 10) -> None:
        super().__init__()
        sizes = ((in_channels, width, 1), (width, width, 2), (width, 2 * width, 1), (2 * width, 2 * width, 2))
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after))
            for before, after, stride in sizes
        )
        self.head = nn.Conv2d(2 * width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(n, c, h, w)` to logits `(n, classes)`."""
        features = images
        for conv in self.convs:
            features = F.relu(conv(features))
        return F.adaptive_avg_pool2d(self.head(features), 1).flatten(1)
