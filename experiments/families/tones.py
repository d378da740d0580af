"""Synthetic chords: which of the 24 major and minor triads is heard; and a convolutional network that tells."""

import numpy as np
import torch
from torch import Tensor, nn

from plywise.env.task.task import Task
from plywise.experiments.families.classification import Labelled, accuracy, cross_entropy

RATE = 2400
"""Samples a second."""
LENGTH = 1024
ROOTS = 12
THIRDS = 4, 3
"""Semitones of a major and a minor third."""
LOWEST = 130.81
"""Hertz: C3. Each note of a chord lies in the octave above it or in the next one."""
DETUNED = 0.2
"""Semitones that a chord is off at most."""
NOISE = 3.0
"""Deviation; a chord's is about 1."""
COUNTS = {"train": 4096, "validation": 512, "test": 512}
"""Chords of each split."""
BATCH = 64


def chords(split: str) -> list[Labelled]:
    """Returns batches of waves `(64, 1, 1024)` float32 and classes `(64,)`: the root, plus 12 for a minor triad."""
    generator, count = np.random.default_rng(list(COUNTS).index(split)), COUNTS[split]
    labels = generator.integers(2 * ROOTS, size=count)
    third = np.where(labels < ROOTS, *THIRDS)
    notes = labels[:, None] % ROOTS + np.stack([np.zeros_like(third), third, np.full_like(third, 7)], 1)
    notes = notes % ROOTS + ROOTS * generator.integers(2, size=notes.shape)
    pitch = LOWEST * 2 ** ((notes + generator.uniform(-DETUNED, DETUNED, (count, 1))) / 12)  # (n, 3)
    time = np.arange(LENGTH) / RATE
    waves = generator.normal(0, NOISE, (count, LENGTH))
    for harmonic, size in ((1, 1.0), (2, 0.3)):
        phase = generator.uniform(0, 2 * np.pi, pitch.shape)
        loud = size * generator.uniform(0.5, 1, pitch.shape)
        for note in range(3):
            angle = 2 * np.pi * harmonic * pitch[:, note, None] * time + phase[:, note, None]
            waves += loud[:, note, None] * np.sin(angle)
    inputs = torch.from_numpy(waves.astype(np.float32))[:, None]
    return list(zip(torch.split(inputs, BATCH), torch.split(torch.from_numpy(labels), BATCH), strict=True))


def make_task() -> Task:
    """Returns the task of telling chords apart."""
    return Task(chords("train"), chords("validation"), chords("test"), metric=accuracy, loss=cross_entropy)


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
