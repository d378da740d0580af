"""Parts of a network whose outputs are worth remembering while plans change behind them."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from plywise.compressors.modules.projected_recurrence import ProjectedRecurrence
from plywise.env.network.graph import Entry, Exit, Graph
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
    """Returns the largest modules of few layers that can be units; none overlap."""
    units = _units(network.graph, {layer.name for layer in network.layers})
    most = max(1, min(MOST, len(network.layers) // 6))
    found: list[Unit] = []

    def descend(module: nn.Module, path: str) -> None:
        if isinstance(module, ProjectedRecurrence):
            return  # it asks its layers for their weights
        for name, child in module.named_children():
            inner = f"{path}{name}"
            inside = sum(layer.name == inner or layer.name.startswith(f"{inner}.") for layer in network.layers)
            unit = units.get(inner)
            if unit is not None and 0 < inside <= most:
                found.append(unit)
            elif inside:
                descend(child, f"{inner}.")

    descend(network.model, "")
    return tuple(found)


def _units(graph: Graph, layers: Collection[str]) -> dict[str, Unit]:
    """Returns the modules that can be units, by name, whatever their size."""
    ran: Counter[str] = Counter()  # layers, by name, how often until now
    calls: Counter[str] = Counter()
    entries: dict[str, tuple[Entry, Counter[str]]] = {}
    units: dict[str, tuple[Unit, Counter[str]]] = {}
    for step in graph.steps:
        if isinstance(step, Exit):
            ran.update({step.module} & set(layers))
            entry, before = entries[step.module]
            if step.output is not None and step.reads == entry.reads:  # it has written over none of them
                units[step.module] = Unit(step.module, len(ran), step.changed), ran - before
        elif isinstance(step, Entry):
            calls[step.module] += 1
            entries[step.module] = step, ran.copy()
    return {
        name: unit
        for name, (unit, inside) in units.items()
        if calls[name] == 1 and all(ran[layer] == runs for layer, runs in inside.items())
    }
