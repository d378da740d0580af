"""Reads a user's batches: into memory where that is little, else again each time."""

from collections.abc import Iterable, Iterator, Sequence

from plywise.compressors.errors import DataError
from plywise.env.task.batch import Batch, as_studied, items_in, part, shapes_of, splits, tensors_in
from plywise.env.task.samples import Changed, content_of
from plywise.env.task.task import Task

CALIBRATION_ITEMS = 512
"""Items that layers are calibrated on."""

VALIDATION_ITEMS = 2000
"""Items that are held out of the calibration data, at most, where a user gives no others."""

MOST_BYTES = 1 << 30
"""Of batches that are held in memory; more are read again each time."""


def calibration_batches(task: Task) -> tuple[list[Batch], Iterable[Batch], list[Batch]]:
    """Returns batches to calibrate on, all to train on, and those to be held out, if there are no validation data."""
    wanted = CALIBRATION_ITEMS if task.validation is not None else CALIBRATION_ITEMS + VALIDATION_ITEMS
    first, rest = _read(task.calibration, "calibration", wanted)
    batches = _checked([*first], "calibration")
    total = sum(map(items_in, batches))
    training: Iterable[Batch] = batches if not rest else _Again(task.calibration, "calibration", content_of(batches[0]))
    if task.validation is not None:
        return _up_to(batches, CALIBRATION_ITEMS)[0], training, []
    kept, held_out = _up_to(batches, min(CALIBRATION_ITEMS, -(-total // 2)))
    if not held_out:
        raise DataError(
            "calibration holds a single batch whose items cannot be told apart, so nothing can be held out of it; give "
            "validation data as well"
        )
    return kept, kept if not rest else training, held_out


def _up_to(batches: Sequence[Batch], count: int) -> tuple[list[Batch], list[Batch]]:
    """Returns the batches of the first `count` items, and the others; a batch that does not split goes whole."""
    before: list[Batch] = []
    behind: list[Batch] = []
    for place, batch in enumerate(batches):
        left = count - sum(map(items_in, before))
        if left <= 0 or (place and place == len(batches) - 1 and not behind and not splits(batch)):
            behind.append(batch)
        elif items_in(batch) > left and splits(batch):
            before.append(part(batch, 0, left))
            behind.append(part(batch, left, items_in(batch)))
        else:
            before.append(batch)
    return before, behind


def batches_of(given: Iterable[Batch], what: str) -> Iterable[Batch]:
    """Returns batches in memory where that is little, else what reads them again each time."""
    first, rest = _read(given, what, None)
    batches = _checked([*first], what)
    return _Again(given, what, content_of(batches[0])) if rest else batches


def _read(given: Iterable[Batch], what: str, most: int | None) -> tuple[list[Batch], bool]:
    """Returns batches up to a number of items and to the memory that they may take, and whether there are more."""
    found: list[Batch] = []
    items = size = 0
    for batch in given:
        if found and ((most is not None and items >= most) or size > MOST_BYTES):
            return found, True
        found.append(as_studied(batch))
        items += items_in(found[-1])
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(found[-1]))
    if not items:
        raise DataError(f"{what} is empty; at least a few hundred items are needed")
    return found, False


def _checked(batches: list[Batch], what: str) -> list[Batch]:
    for batch in batches:
        if not tensors_in(batch):
            raise DataError(f"a batch of {what} is {shapes_of(batch)}; it must hold tensors")
    return batches


class _Again:
    """Reads a user's batches anew each time."""

    def __init__(self, given: Iterable[Batch], what: str, first: bytes) -> None:
        self._batches, self._what, self._first = Changed(given, as_studied), what, first

    def __iter__(self) -> Iterator[Batch]:
        for place, batch in enumerate(self._batches):
            if place == 0 and content_of(batch) != self._first:
                raise DataError(
                    f"{self._what} gives other batches each time that it is read, and is too large to be held in "
                    "memory; give a DataLoader with shuffle=False and no random augmentation"
                )
            yield batch
