"""Batches that networks are run over, and how the networks are judged on them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any, Self

import torch
from torch import Tensor, nn

from plywise.env.task.batch import Batch, alike, items_in, joined, mapped, named_leaves, part, splits, tensors_in
from plywise.env.task.judge import CLASSIFIER, Judge
from plywise.env.task.metrics import Enough, Score

BATCH = 64
"""On ResNet-20 a tenth faster than 256: less has to leave the processor's cache."""

STEPS = 50
"""Into which the largest output is divided to tell forwards apart."""


class Samples:
    """Batches and their judge.

    Attributes:
        judge: how networks are run on them and scored.
    """

    def __init__(self, batches: Iterable[Batch], judge: Judge) -> None:
        """Takes batches: a sequence that is held in memory, or what gives the same ones each time that it is read."""
        self._batches, self.judge = batches, judge

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    def __len__(self) -> int:
        return self._items

    @cached_property
    def _items(self) -> int:
        return sum(map(items_in, self._batches))

    @property
    def held(self) -> bool:
        """Whether the batches lie in memory."""
        return isinstance(self._batches, Sequence)

    @cached_property
    def even(self) -> bool:
        """Whether items can be put into other batches: they lie in memory, along the first axis, and are alike."""
        if not isinstance(self._batches, Sequence) or not self._batches:
            return False
        first = self._batches[0]
        return all(splits(batch) and alike(batch, first) for batch in self._batches)

    def judged_by(self, judge: Judge) -> Self:
        """Returns the same batches with another judge."""
        return type(self)(self._batches, judge)

    def first(self, count: int) -> Self:
        """Returns the first samples, `count` of them, in memory; whole batches where items cannot be told apart."""
        found: list[Batch] = []
        left = count
        for batch in self._batches:
            if left <= 0:
                break
            size = items_in(batch)
            found.append(part(batch, 0, left) if size > left and splits(batch) else batch)
            left -= size
        return type(self)(found, self.judge)

    def joined(self, count: int) -> Batch:
        """Returns the first samples that are alike, at most `count`, as one batch."""
        some = list(self.first(count))
        return joined(list(takewhile(lambda batch: alike(batch, some[0]), some)))

    def at(self, places: Tensor) -> Self:
        """Returns the samples at `places`, indices `(m,)`; they must be `even`."""
        whole = self._whole
        return type(self)(batched(mapped(whole, lambda tensor: tensor[places]), BATCH), self.judge)

    def shuffled(self, seed: int = 0) -> Self:
        """Returns the samples in a random order, in which the first few are like all of them, if they are `even`."""
        if not self.even:
            return self
        return self.at(random_order(len(self), torch.Generator().manual_seed(seed)))

    def laid_out(self, memory_format: torch.memory_format) -> Self:
        """Returns the same samples with images in another order in memory."""
        if memory_format == torch.contiguous_format:
            return self
        change: Callable[[Batch], Batch] = lambda batch: laid_out(batch, memory_format)  # noqa: E731
        if isinstance(self._batches, Sequence):
            return type(self)([change(batch) for batch in self._batches], self.judge)
        return type(self)(Changed(self._batches, change), self.judge)

    def outputs(self, model: nn.Module) -> Iterator[Any]:
        """Yields the outputs of `model`, which must be in eval mode, on each batch."""
        with torch.inference_mode():
            for batch in self._batches:
                yield self.judge.forward(model, batch)

    def score(self, model: nn.Module, enough: Enough | None = None) -> Score:
        """Returns how good a network is.

        Args:
            model: in eval mode.
            enough: told the values of each batch, says whether the rest is not wanted; None to run all.
        """
        batches = self._batches
        return self.judge.metric.score(model, batches, self.judge.forward, enough)  # type: ignore[arg-type]

    def digest(self) -> str:
        """Returns a hash of the content and of the judge."""
        state = hashlib.sha256(f"{self.judge.digest}{self.judge.point}".encode())
        for batch in self._batches:
            state.update(content_of(batch))
        return state.hexdigest()[:16]

    @cached_property
    def _whole(self) -> Batch:
        assert isinstance(self._batches, Sequence)
        return joined(self._batches)


class Changed:
    """Reads batches with a change of each."""

    def __init__(self, batches: Iterable[Batch], change: Callable[[Batch], Batch]) -> None:
        """Takes what gives batches each time that it is read, and the change."""
        self._batches, self._change = batches, change

    def __iter__(self) -> Iterator[Batch]:
        return map(self._change, self._batches)


class Labelled(Samples):
    """Samples of a classifier that takes one tensor: batches `(inputs, labels)`, in memory."""

    @property
    def inputs(self) -> Tensor:
        """Inputs of all, `(n, ...)`."""
        inputs: Tensor = self._whole[0]
        return inputs

    @property
    def labels(self) -> Tensor:
        """Labels of all, `(n,)`."""
        labels: Tensor = self._whole[1]
        return labels

    def logits(self, model: nn.Module) -> Tensor:
        """Returns the outputs `(n, classes)` of `model`, which must be in eval mode."""
        return torch.cat(list(self.outputs(model)))


def labelled(inputs: Tensor, labels: Tensor) -> Labelled:
    """Returns samples of a classifier: inputs `(n, ...)`, float32 and normalised or int64 indices, labels `(n,)`."""
    return Labelled(batched((inputs, labels), BATCH) or [(inputs, labels)], CLASSIFIER)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Returns the share of right classes among logits `(n, classes)`, percent."""
    return 100.0 * float((logits.argmax(1) == labels).double().mean())


def batched(whole: Batch, size: int) -> list[Batch]:
    """Returns one batch as several of at most `size` items."""
    return [part(whole, start, start + size) for start in range(0, items_in(whole), size)]


def laid_out(batch: Batch, memory_format: torch.memory_format) -> Batch:
    """Returns a batch with its images `(n, c, h, w)` in another order in memory."""
    return mapped(batch, lambda tensor: tensor.to(memory_format=memory_format) if is_image(tensor) else tensor)


def is_image(tensor: Tensor) -> bool:
    """Returns whether a tensor may hold images: floats along four axes."""
    return tensor.dim() == 4 and tensor.is_floating_point()


def random_order(count: int, generator: torch.Generator) -> Tensor:
    """Returns the indices `(count,)` in random order."""
    # Sorting random numbers rests on the generator alone; `randperm` changed its method between versions.
    return torch.rand(count, generator=generator, dtype=torch.float64).argsort(stable=True)


def content_of(batch: Batch) -> bytes:
    """Returns a hash of what a batch holds."""
    state = hashlib.blake2b(digest_size=16)
    for name, leaf in named_leaves(batch).items():
        if isinstance(leaf, Tensor):
            state.update(f"{name}{tuple(leaf.shape)}{leaf.dtype}".encode())
            state.update(_bytes_of(leaf))
        else:
            state.update(f"{name}{leaf!r}".encode())
    return state.digest()


def model_digest(model: nn.Module, batch: Batch, judge: Judge = CLASSIFIER) -> str:
    """Returns a hash of a network: its structure, its weights, and what its forward makes of a batch.

    Outputs go in by steps so large that other processors and numbers of threads rarely make another hash of them.
    """
    state = hashlib.sha256(repr(model).encode())
    with torch.inference_mode():
        outputs = judge.forward(model, batch)
    for tensor in tensors_in(outputs):
        values = tensor.double().nan_to_num()
        largest = values.abs().max().clamp(min=1e-30) if values.numel() else 1.0
        state.update(_bytes_of((values / largest * STEPS).round().to(torch.int64)))
    for name, value in sorted(model.state_dict().items()):
        state.update(name.encode())
        state.update(_bytes_of(value))
    return state.hexdigest()[:16]


def _bytes_of(values: Tensor) -> memoryview:
    """Returns the bytes of a tensor where they lie, for they may be gigabytes; in order, where they lie otherwise."""
    return values.detach().contiguous().view(-1).view(torch.uint8).numpy(force=True).data
