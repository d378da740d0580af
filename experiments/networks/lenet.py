"""LeNet: convolutions with bias and pooling, no BatchNorm, then linear layers."""

from torch import Tensor, nn
from torch.nn import functional as F


class LeNet5(nn.Module):
    """LeNet-5 as the compression literature uses it (Caffe's, 431,080 parameters), for 1x28x28 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(n, 1, 28, 28)` to logits `(n, 10)`."""
        features = F.max_pool2d(self.conv1(images), 2)
        features = F.max_pool2d(self.conv2(features), 2)
        return self.fc2(F.relu(self.fc1(features.flatten(1))))  # type: ignore[no-any-return]


class DigitsLeNet(nn.Module):
    """The same shape for 1x8x8 images: 5x5 convolutions that keep the size, pooling, three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, padding=2)
        self.conv2 = nn.Conv2d(16, 32, 5, padding=2)
        self.fc1 = nn.Linear(128, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(n, 1, 8, 8)` to logits `(n, 10)`."""
        features = F.max_pool2d(F.relu(self.conv1(images)), 2)
        features = F.max_pool2d(F.relu(self.conv2(features)), 2)
        features = F.relu(self.fc1(features.flatten(1)))
        features = F.relu(self.fc2(features))
        return self.fc3(features)  # type: ignore[no-any-return]
