"""What a network adds to the outputs of a layer: the shortcut of a residual block."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from plywise.env.network.graph import Exit, Graph, Operator, Value


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


@dataclass(frozen=True)
class _Sight:
    """One time that a tensor was seen: where and at which step."""

    place: Shortcut
    step: int


def find_shortcuts(graph: Graph, layers: Collection[str]) -> Mapping[str, Shortcut]:
    """Returns what is added to the outputs of a layer, by its name.

    Only where nothing else reads these, and where the other addend is known when the layer runs.

    Args:
        graph: of the network.
        layers: names of leaf modules.
    """
    runs: Counter[str] = Counter()
    sights: dict[Value, list[_Sight]] = {}
    began: dict[str, int] = {}
    makers: dict[int, str] = {}
    readers: dict[str, list[list[_Sight]]] = {}  # of a layer's outputs: where what is added was seen

    def see(value: Value | None, place: Shortcut, turn: int) -> None:
        if value is not None and place.module:  # what the whole network reads, its first modules read as well
            sights.setdefault(value, []).append(_Sight(place, turn))

    for turn, step in enumerate(graph.steps):
        if isinstance(step, Operator):
            for value, added in _addends(step):
                layer = makers.get(value.number)
                if layer is not None:
                    readers.setdefault(layer, []).append([] if added is None else list(sights.get(added, [])))
                    if step.name.endswith("_") and step.args[0] == value:
                        del makers[value.number]  # from here on it is something else
        elif isinstance(step, Exit):
            see(step.made, Shortcut(step.module, False), turn)
            if step.made is not None and step.module in layers:
                makers[step.made.number] = step.module
        else:
            runs[step.module] += 1
            see(step.read, Shortcut(step.module, True), turn)
            began[step.module] = turn

    def usable(layer: str, sight: _Sight) -> bool:
        """Whether it was there in time, and not inside of something that the layer is not in."""
        holder = sight.place.module.rpartition(".")[0]
        inside = not holder or layer.startswith(f"{holder}.")
        return inside and sight.step <= began[layer] and runs[sight.place.module] == 1

    places = {
        layer: [sight.place for sight in sightings[0] if usable(layer, sight)]
        for layer, sightings in readers.items()
        if len(sightings) == 1
    }
    return {layer: found[0] for layer, found in places.items() if found}


def _addends(step: Operator) -> list[tuple[Value, Value | None]]:
    """Returns each value that an operator reads, with the other one where it does nothing but add the two."""
    values = step.reads
    if len(values) != 2:
        return [(value, None) for value in values]
    first, second = values
    adds = step.name in ("add", "add_") and not step.kwargs
    fits = adds and first.number != second.number and first.shape == second.shape
    return [(first, second if fits else None), (second, first if fits else None)]
