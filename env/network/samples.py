"""Normalised inputs with their labels, and the forward passes over them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BATCH = 64
"""On ResNet-20 a tenth faster than 256: less has to leave the processor's cache."""


STEPS = 50
"""Into which the largest output is divided to tell forwards apart."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs `(n, ...)`, float32 and normalised or int64 indices of an embedding, and labels `(n,)` int64."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> "Samples":
        """Returns the first `count` samples."""
        return Samples(self.inputs[:count], self.labels[:count])

    def at(self, places: Tensor) -> "Samples":
        """Returns the samples at `places`, indices `(m,)`."""
        return Samples(self.inputs[places], self.labels[places])

    def shuffled(self, seed: int = 0) -> "Samples":
        """Returns the samples in a random order, in which the first few are like all of them."""
        return self.at(random_order(len(self), torch.Generator().manual_seed(seed)))

    def laid_out(self, memory_format: torch.memory_format) -> "Samples":
        """Returns the same samples with their inputs in another order in memory."""
        return Samples(self.inputs.to(memory_format=memory_format), self.labels)

    def logits(self, model: nn.Module, enough: Callable[[Tensor], bool] = lambda _: False) -> Tensor:
        """Returns the outputs `(n, classes)` of `model`, which must be in eval mode.

        Args:
            model: maps inputs to `(n, classes)`.
            enough: told the outputs of each batch, says whether the rest is not wanted.
        """
        found: list[Tensor] = []
        with torch.inference_mode():
            for start in range(0, len(self.inputs), BATCH):
                found.append(model(self.inputs[start : start + BATCH]))
                if enough(found[-1]):
                    break
        return torch.cat(found)

    def accuracy(self, logits: Tensor) -> float:
        """Returns the share of right classes among `logits`, of the first samples or of all, percent."""
        return 100.0 * float((logits.argmax(1) == self.labels[: len(logits)]).double().mean())

    def digest(self) -> str:
        """Returns a hash of the content."""
        state = hashlib.sha256()
        for values in (self.inputs, self.labels):
            state.update(_bytes_of(values))
        return state.hexdigest()[:16]


def random_order(count: int, generator: torch.Generator) -> Tensor:
    """Returns the indices `(count,)` in random order."""
    # Sorting random numbers rests on the generator alone; `randperm` changed its method between versions.
    return torch.rand(count, generator=generator, dtype=torch.float64).argsort(stable=True)


def model_digest(model: nn.Module, inputs: Tensor) -> str:
    """Returns a hash of a network: its structure, its weights, and what its forward makes of some `inputs`.

    Outputs go in by steps so large that other processors and numbers of threads rarely make another hash of them.
    """
    state = hashlib.sha256(repr(model).encode())
    with torch.inference_mode():
        outputs = model(inputs).double().nan_to_num()
    steps = (outputs / outputs.abs().max().clamp(min=1e-30) * STEPS).round().to(torch.int64)
    state.update(_bytes_of(steps))
    for name, value in sorted(model.state_dict().items()):
        state.update(name.encode())
        state.update(_bytes_of(value))
    return state.hexdigest()[:16]


def _bytes_of(values: Tensor) -> memoryview:
    """Returns the bytes of a tensor where they lie, for they may be gigabytes; in order, where they lie otherwise."""
    return values.detach().contiguous().view(-1).view(torch.uint8).numpy(force=True).data
