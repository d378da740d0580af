"""Parts of a network whose outputs are worth remembering while plans change behind them."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from plywise.compressors.modules.projected_recurrence import ProjectedRecurrence
from plywise.env.network.network import Network

MOST = 4
"""Layers of a unit, and a sixth of all layers: what changes inside a unit is computed from its beginning."""


@dataclass(frozen=True)
class Unit:
    """A module that runs once in a forward pass, changes nothing but its output and has its layers to itself.

    Attributes:
        name: dotted name.
        layers: how many layers of the network have run when it returns: their recipes decide its output.
        changed: whether its output is changed in place later on, so that only a copy can be remembered.
    """

    name: str
    layers: int
    changed: bool

    def holds(self, name: str) -> bool:
        """Returns whether the module of a name is this one or inside it."""
        return name == self.name or name.startswith(f"{self.name}.")


def find_units(network: Network) -> tuple[Unit, ...]:
    """Watches one forward pass and returns the largest modules of few layers that can be units; none overlap."""
    watch = _Watch(network)
    most = max(1, min(MOST, len(network.layers) // 6))
    found: list[Unit] = []

    def descend(module: nn.Module, path: str) -> None:
        if isinstance(module, ProjectedRecurrence):
            return  # it asks its layers for their weights
        for name, child in module.named_children():
            inner = f"{path}{name}"
            inside = sum(layer.name == inner or layer.name.startswith(f"{inner}.") for layer in network.layers)
            unit = watch.units.get(inner)
            if unit is not None and 0 < inside <= most:
                found.append(unit)
            elif inside:
                descend(child, f"{inner}.")

    descend(network.model, "")
    return tuple(found)


class _Watch:
    def __init__(self, network: Network) -> None:
        self.layers = {layer.name for layer in network.layers}
        self.ran: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.before: dict[str, tuple[list[int], Counter[str]]] = {}
        self.after: dict[str, tuple[int, Tensor, int, Counter[str]]] = {}
        handles: list[Any] = []
        for name, module in network.model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave(name), with_kwargs=True))
        try:
            with torch.no_grad():
                network.run(network.model)
        finally:
            for handle in handles:
                handle.remove()
        self.units = {
            name: Unit(name, ran, output._version != version)
            for name, (ran, output, version, inside) in self.after.items()
            if self.calls[name] == 1 and all(self.ran[layer] == runs for layer, runs in inside.items())
        }

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.calls[name] += 1
            self.before[name] = _versions(args, kwargs), self.ran.copy()

        return hook

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.ran.update({name} & self.layers)
            versions, before = self.before[name]
            if isinstance(output, Tensor) and _versions(args, kwargs) == versions:
                self.after[name] = len(self.ran), output, output._version, self.ran - before

        return hook


def _versions(args: Any, kwargs: Any) -> list[int]:
    """Returns how often each tensor among the arguments has been changed in place."""
    return [leaf._version for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
