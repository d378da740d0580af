"""Hidden units of recurrences as channels, and what stands in for a recurrence while their readers are looked for."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from plywise.compressors.errors import UnsupportedLayerError
from plywise.compressors.modules.assembly import answer_as
from plywise.compressors.modules.projected_recurrence import ProjectedRecurrence, State

Part = tuple[str, Tensor, Tensor]
"""Name of a layer, channels `(n,)` of one of its sides, and the channel of the group that each belongs to."""


class StandIn(ProjectedRecurrence):
    """Has the inputs and outputs of a recurrence, made by one linear layer for each direction.

    Attributes:
        sources: from the inputs to the hidden states of the last layer, of each direction.
        units: hidden units of each direction.
    """

    def __init__(self, recurrence: ProjectedRecurrence) -> None:
        nn.Module.__init__(self)
        answer_as(self, recurrence)
        self.units = recurrence.hidden_size
        self.sources = nn.ModuleList(nn.Linear(recurrence.input_size, self.units) for _ in recurrence.layers[0])

    def _reads(self, name: str) -> int:
        weight = self.sources[0].get_parameter("weight")
        return weight.shape[1] if name == "input_l0" else self.units

    def run(self, sequence: Tensor, sizes: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        """Returns results of the shapes that a recurrence gives."""
        parts = [source(sequence) for source in self.sources]
        if state is not None and sizes is None:  # what it starts from shares its units
            parts = [part + each[:, None] for part, each in zip(parts, state[0][: len(parts)], strict=True)]
        last = [part[:, -1] if sizes is None else part[: int(sizes[0])] for part in parts]
        ends = torch.stack(last * self.num_layers)
        outputs = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        return outputs, (ends, ends) if self.mode == "LSTM" else (ends,)

    def parts(self, name: str) -> tuple[list[Part], list[Part]]:
        """Returns the rows of each layer that make its hidden units, and the columns inside that read them."""
        units = torch.arange(self.units)
        rows, owners = torch.arange(self.units * self.gates), units.repeat_interleave(self.gates)
        makes = [(f"{name}.{side}_{place}", rows, owners) for place in self.places for side in ("input", "hidden")]
        reads = [(f"{name}.hidden_{place}", units, units) for place in self.places]
        both = torch.arange(len(self.sources) * self.units)
        later = [place for places in self.layers[1:] for place in places]
        return makes, reads + [(f"{name}.input_{place}", both, both % self.units) for place in later]


def stand_ins(modules: Mapping[str, nn.Module]) -> dict[str, StandIn]:
    """Returns what stands in for each recurrence, by name."""
    return {name: StandIn(module) for name, module in modules.items() if isinstance(module, ProjectedRecurrence)}


def taken_apart(
    recurrences: Mapping[str, StandIn], order: Sequence[str], makes: Iterable[Part], reads: Iterable[Part]
) -> tuple[list[Part], list[Part]]:
    """Returns the sides of a group with the layers of recurrences in their places, one for each layer.

    Args:
        recurrences: what stands in for each, by name.
        order: names of the layers that can be compressed.
        makes, reads: sides that make the channels and that read them.

    Raises:
        UnsupportedLayerError: where a recurrence does not share its units as they are, or a layer of it stays whole.
    """
    makers: list[Part] = []
    readers: list[Part] = []
    for name, local, root in makes:
        if name in recurrences:
            if not torch.equal(local, root):
                raise UnsupportedLayerError(f"shares channels with {name}, which has them in another order")
            makers_inside, readers_inside = recurrences[name].parts(name)
            makers += makers_inside
            readers += readers_inside
        else:
            makers.append((name, local, root))
    for name, local, root in reads:
        places = recurrences[name].layers[0] if name in recurrences else []
        readers += [(f"{name}.input_{place}", local, root) for place in places] or [(name, local, root)]
    for name, *_ in (*makers, *readers):
        if name.rpartition(".")[0] in recurrences and name not in order:
            raise UnsupportedLayerError(f"shares channels with {name}, which stays as it is")
    return _merged(makers), _merged(readers)


def _merged(parts: Sequence[Part]) -> list[Part]:
    """Returns one part for each layer, with every channel once."""
    roots: dict[str, dict[int, int]] = {}
    for name, local, root in parts:
        roots.setdefault(name, {}).update(zip(local.tolist(), root.tolist(), strict=True))
    return [(name, torch.tensor(list(each)), torch.tensor(list(each.values()))) for name, each in roots.items()]
