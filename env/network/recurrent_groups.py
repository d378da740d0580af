"""Hidden units of recurrences as channels, and what stands in for a recurrence while their readers are looked for."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

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
        last = [part[:, -1] if sizes is None else part[: int(sizes[0])] for part in parts]
        ends = torch.stack(last * self.num_layers)
        outputs = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        return outputs, (ends, ends) if self.mode == "LSTM" else (ends,)

    def readers(self, name: str, local: Tensor, root: Tensor) -> Iterator[Part]:
        """Yields what reads the inputs `local` of the recurrence of a name."""
        for place in self.layers[0]:
            yield f"{name}.input_{place}", local, root

    def units_of(self, name: str) -> tuple[list[Part], list[Part]]:
        """Returns the rows of each layer that make its hidden units, and the columns inside that read them."""
        units = torch.arange(self.units)
        rows, owners = torch.arange(self.units * self.gates), units.repeat_interleave(self.gates)
        makers = [(f"{name}.{side}_{place}", rows, owners) for place in self.places for side in ("input", "hidden")]
        inside = [(f"{name}.hidden_{place}", units, units) for place in self.places]
        both = torch.arange(len(self.sources) * self.units)
        later = [place for places in self.layers[1:] for place in places]
        return makers, inside + [(f"{name}.input_{place}", both, both % self.units) for place in later]


def stand_ins(modules: Mapping[str, nn.Module]) -> dict[str, StandIn]:
    """Returns what stands in for each recurrence, by name."""
    return {name: StandIn(module) for name, module in modules.items() if isinstance(module, ProjectedRecurrence)}
