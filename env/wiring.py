"""Which layers hand their outputs to which: where both compute alike, the runtime need not change the numbers' form."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plywise.env.latency import Chain
from plywise.env.network import Network


@dataclass(frozen=True)
class Wiring:
    """What each layer reads.

    Attributes:
        makers: for each layer the layers whose outputs reach it without passing through another one.
    """

    makers: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, network: Network) -> "Wiring":
        """Follows one input through a network."""
        with torch.no_grad(), _Follow() as follow, _hooks(network, follow):
            network.model(network.example[:1])
        return cls(follow.makers)

    def crossed(self, name: str, plan: Mapping[str, Chain]) -> float:
        """Returns how many of the numbers that a layer reads are made as floats and read as integers or the reverse.

        Args:
            name: of the layer; where several layers make what it reads, each counts for an equal share.
            plan: the chain of each layer, by name.
        """
        makers, first = self.makers[name], plan[name][0]
        other = sum(plan[maker][-1].integer != first.integer for maker in makers)
        return math.prod(first.input_shape) * other / max(1, len(makers))


class _Follow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which layers each tensor comes from."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.origins: dict[int, tuple[str, ...]] = {}
        self.alive: list[Tensor] = []  # ids stay unique only while the tensors live
        self.makers: dict[str, tuple[str, ...]] = {}
        self.inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.inside:
            found = [self.origins.get(id(leaf), ()) for leaf in tree_leaves((args, kwargs))]
            makers = tuple(dict.fromkeys(maker for origin in found for maker in origin))
            for leaf in tree_leaves(result) if makers else ():
                self.note(leaf, makers)
        return result

    def note(self, value: Any, makers: tuple[str, ...]) -> None:
        if isinstance(value, Tensor):
            self.origins[id(value)] = makers
            self.alive.append(value)


@contextmanager
def _hooks(network: Network, follow: _Follow) -> Iterator[None]:
    def before(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            follow.makers[name] = follow.origins.get(id(args[0]), ())
            follow.inside = True

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            follow.inside = False
            follow.note(output, (name,))

        return hook

    handles = []
    for layer in network.layers:
        module = network.modules[layer.name]
        handles += [module.register_forward_pre_hook(before(layer.name))]
        handles += [module.register_forward_hook(after(layer.name))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
