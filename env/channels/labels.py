"""Labels of channels: numbers that entries of tensors carry through a forward pass, united where channels are tied."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor


class Labels:
    """Hands out labels and keeps which of them have been united. 0 is the label of what belongs to no channel.

    A tensor of labels has the shape of what it describes. Along axes on which all entries are alike it is expanded from
    one (its stride is 0), so that it takes little memory and time.
    """

    def __init__(self, classes: Tensor | None = None) -> None:
        """Starts with nothing united, or with the `classes` `(labels,)` that an earlier, equal pass has found."""
        self._classes = torch.zeros(1, dtype=torch.int64) if classes is None else classes.clone()
        self._bare = torch.zeros(1, dtype=torch.bool)

    @property
    def all_classes(self) -> Tensor:
        """For each label `(labels,)` the least one that it is united with."""
        return self._classes

    def fresh(self, count: int, bare: bool = False) -> Tensor:
        """Returns new labels `(count,)`; `bare` ones are those of a parameter that belongs to no layer."""
        start = len(self._bare)
        self._bare = torch.cat([self._bare, torch.full((count,), bare)])
        known = len(self._classes)
        self._classes = torch.cat([self._classes, torch.arange(known, max(known, len(self._bare)))])
        return torch.arange(start, start + count)

    def is_bare(self, labels: Tensor) -> bool:
        """Returns whether labels are those of bare parameters alone, or none."""
        return bool((self._bare[narrow(labels)] | (narrow(labels) == 0)).all())

    def classes(self, labels: Tensor) -> Tensor:
        """Returns for each entry the least label that it is united with."""
        return self._classes[labels]

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Unites the labels of two tensors entry by entry, broadcast; entries without a label stay without."""
        small = narrow(first), narrow(second)
        shape = torch.broadcast_shapes(*(each.shape for each in small))  # type: ignore[no-untyped-call]
        ends = [self.classes(each.expand(shape)).flatten() for each in small]
        differ = (ends[0] != ends[1]) & (ends[0] != 0) & (ends[1] != 0)
        if not bool(differ.any()):
            return
        pairs = torch.stack([each[differ] for each in ends]).numpy()
        known, places = np.unique(pairs, return_inverse=True)
        ones, places = np.ones(pairs.shape[1], np.int8), places.reshape(pairs.shape)
        _, part = connected_components(coo_array((ones, tuple(places)), shape=(len(known),) * 2), directed=False)
        nodes, parts = torch.from_numpy(known), torch.from_numpy(part).long()
        least = torch.full((len(nodes),), len(self._classes)).scatter_reduce(0, parts, nodes, "amin")
        moved = torch.arange(len(self._classes))
        moved[nodes] = least[parts]
        self._classes = moved[self._classes]

    def unite_along(self, labels: Tensor, axes: Sequence[int]) -> Tensor:
        """Unites all labels that differ in their places along some axes only; returns one for each, these of size 1."""
        if not axes:
            return labels
        small, along = narrow(labels), {axis % labels.dim() for axis in axes}
        shape = tuple(1 if axis in along else size for axis, size in enumerate(labels.shape))
        if not labels.numel():
            return labels.new_zeros(shape)
        chosen = small.amax(tuple(along), keepdim=True)
        self.unite(small, chosen)
        return chosen.expand(shape)

    def varies(self, labels: Tensor, axes: Sequence[int]) -> bool:
        """Returns whether entries along one of some axes belong to different classes."""
        classes = self.classes(narrow(labels))
        return any(bool((classes != classes.narrow(axis, 0, 1)).any()) for axis in axes if classes.shape[axis] > 1)

    def joined(self, first: Tensor, second: Tensor) -> Tensor:
        """Unites the labels of two tensors of one shape; returns the first's, the second's where it has none."""
        self.unite(first, second)
        if bool((narrow(first) != 0).all()):
            return first
        return torch.where(narrow(first) != 0, narrow(first), narrow(second)).expand(first.shape)


def narrow(labels: Tensor) -> Tensor:
    """Returns labels with one entry for all along each axis that was expanded."""
    return labels[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in labels.stride())]


def compact(labels: Tensor) -> Tensor:
    """Returns the same labels, expanded along each axis on which all entries are alike."""
    small = narrow(labels)
    for axis in range(small.dim()):
        first = small.narrow(axis, 0, 1) if small.shape[axis] else small
        if small.shape[axis] > 1 and bool((small == first).all()):
            small = first
    return small.expand(labels.shape)
