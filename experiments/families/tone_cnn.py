"""A convolutional network for waves: long filters first, then short ones."""

from torch import Tensor, nn


class ToneCNN(nn.Module):
    """Convolutions with BatchNorm and ReLU, mean over time, a linear layer.

    Args:
        width: filters of the first convolution; later ones have as many.
        taps: of the first filters.
        stride: of the first filters.
        classes: number of logits.
    """

    def __init__(self, width: int, taps: int, stride: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, size, step in ((1, taps, stride), (width, 5, 2), (width, 5, 2)):
            layers += [nn.Conv1d(channels, width, size, step, size // 2, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(width, classes)

    def forward(self, waves: Tensor) -> Tensor:
        """Maps waves `(n, 1, samples)` to logits `(n, classes)`."""
        return self.head(self.pool(self.features(waves)).flatten(1))  # type: ignore[no-any-return]
