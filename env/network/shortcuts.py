"""What a network adds to the outputs of a layer: the shortcut of a residual block."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plywise.env.network.trace import read_by
from plywise.env.task.forward import Run


@dataclass(frozen=True)
class Shortcut:
    """Where the tensor is to be seen.

    Attributes:
        module: dotted name of a module: one that runs before the layer, alongside it or alongside what holds it; or,
            for what it reads, the layer itself or what holds it.
        read: whether it is what this module reads, else it is what it puts out.
    """

    module: str
    read: bool


def find_shortcuts(model: nn.Module, run: Run, layers: Collection[str]) -> Mapping[str, Shortcut]:
    """Watches one forward pass and returns what is added to the outputs of a layer, by its name.

    Only where nothing else reads these, and where the other addend is known when the layer runs.

    Args:
        model: the network.
        run: runs it on some batch that may be written over.
        layers: names of leaf modules.
    """
    watch = _Watch(layers)
    handles: list[Any] = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(watch.entering(name), with_kwargs=True))
            handles.append(module.register_forward_hook(watch.leaving(name), with_kwargs=True))
    try:
        with torch.no_grad(), watch:
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return watch.shortcuts()


@dataclass(frozen=True)
class _Sight:
    """One time that a tensor was seen: where, which version of it, and how many were seen before."""

    place: Shortcut
    version: int
    turn: int


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows tensors by their ids."""

    def __init__(self, layers: Collection[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layers = layers
        self._runs: Counter[str] = Counter()
        self._turns = count()
        self._sights: dict[int, list[_Sight]] = {}
        self._began: dict[str, int] = {}
        self._makers: dict[int, str] = {}
        self._readers: dict[str, list[list[_Sight]]] = {}  # of a layer's outputs: where what is added was seen
        self._alive: list[Tensor] = []  # ids stay unique only while the tensors live

    def entering(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self._runs[name] += 1
            read = read_by(args, keywords)
            if read is not None:
                self._see(read, Shortcut(name, True))
            self._began[name] = next(self._turns)

        return hook

    def leaving(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            if isinstance(output, Tensor) and output is not read_by(args, keywords):
                self._see(output, Shortcut(name, False))
                if name in self._layers:
                    self._makers[id(output)] = name

        return hook

    def shortcuts(self) -> dict[str, Shortcut]:
        found = {}
        for layer, readers in self._readers.items():
            places = [sight.place for sight in readers[0] if self._usable(layer, sight)]
            if len(readers) == 1 and places:
                found[layer] = places[0]
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        adds = func.overloadpacket.__name__ in ("add", "add_") and not kwargs and len(tensors) == 2
        for outputs, other in zip(tensors, reversed(tensors), strict=True):
            layer = self._makers.get(id(outputs))
            if layer is None:
                continue
            fits = adds and other is not outputs and other.shape == outputs.shape
            sights = [sight for sight in self._sights.get(id(other), []) if sight.version == other._version]
            self._readers.setdefault(layer, []).append(sights if fits else [])
            if func.overloadpacket.__name__.endswith("_") and outputs is args[0]:
                del self._makers[id(outputs)]  # from here on it is something else
        return func(*args, **(kwargs or {}))

    def _see(self, tensor: Tensor, place: Shortcut) -> None:
        self._alive.append(tensor)
        self._sights.setdefault(id(tensor), []).append(_Sight(place, tensor._version, next(self._turns)))

    def _usable(self, layer: str, sight: _Sight) -> bool:
        """Whether it was there in time, and not inside of something that the layer is not in."""
        holder = sight.place.module.rpartition(".")[0]
        inside = not holder or layer.startswith(f"{holder}.")
        return inside and sight.turn < self._began[layer] and self._runs[sight.place.module] == 1
