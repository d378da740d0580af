"""Outputs of modules kept between forward passes, below a ceiling of bytes."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor, nn

from plywise.env.storage.memory import ceiling_of_outputs, keep_freed_memory


@dataclass
class _Kept:
    output: Tensor
    modules: dict[str, nn.Module]
    size: int
    pass_number: int


class ActivationMemory:
    """Keeps what is put in while there is room; what was not used for longest goes first.

    What the pass under way has used or kept itself never goes: a pass that needs more than the ceiling keeps its
    beginning rather than pushing it out with its end, which would leave nothing for the next one.

    Attributes:
        ceiling: bytes that are never exceeded.
        used: bytes kept now.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.used = 0
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._pass = 0

    def begin(self) -> None:
        """Starts another pass: what the last one used may go."""
        self._pass += 1

    def get(self, key: Hashable) -> tuple[Tensor, dict[str, nn.Module]] | None:
        """Returns what was kept under a key: an output, and modules that were finished on the way."""
        found = self._kept.get(key)
        if found is None:
            return None
        found.pass_number = self._pass
        self._kept.move_to_end(key)
        return found.output, found.modules

    def put(self, key: Hashable, output: Tensor, modules: dict[str, nn.Module]) -> None:
        """Keeps an output and modules, which nobody may change any more, unless there is no room."""
        size = output.untyped_storage().nbytes() + sum(
            p.untyped_storage().nbytes() for module in modules.values() for p in module.parameters()
        )
        while self.used + size > self.ceiling:
            oldest = next(iter(self._kept), None)
            if oldest is None or self._kept[oldest].pass_number == self._pass:
                return
            self.used -= self._kept.pop(oldest).size
        self._kept[key] = _Kept(output, modules, size, self._pass)
        self.used += size


def shared_memory() -> ActivationMemory:
    """Returns the memory that all networks of this process share, below the ceiling that is asked for now."""
    memory = _shared()
    memory.ceiling = ceiling_of_outputs()
    return memory


@lru_cache(1)
def _shared() -> ActivationMemory:
    keep_freed_memory()
    return ActivationMemory(0)
