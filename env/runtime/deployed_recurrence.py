"""A recurrence as the runtime shall see it: one operator for each layer, of matrices that are decoded at load."""

from itertools import starmap
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic_multi_out

from plywise.compressors.errors import ModelError
from plywise.compressors.modules.projected_recurrence import ProjectedRecurrence, State, effective

ORDERS = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
"""Places of ONNX's gates (iofc, zrh) among those of torch (ifgo, rzn)."""

PACKED = "packed sequences cannot be exported, for their lengths are data; give the recurrence padded ones"


class DeployedRecurrence(ProjectedRecurrence):
    """Writes the ONNX nodes itself: torch's export makes a loop of the kernel first, which takes seconds."""

    order: Tensor

    def __init__(self, recurrence: ProjectedRecurrence) -> None:
        nn.Module.__init__(self)
        settings = ("mode", "num_layers", "bidirectional", "batch_first", "dropout")
        vars(self).update({name: getattr(recurrence, name) for name in settings})
        for name, leaf in recurrence.named_children():
            self.add_module(name, leaf)
        units = torch.arange(self.hidden_size) * self.gates
        self.register_buffer("order", torch.cat([units + place for place in ORDERS[self.mode]]))

    def run(self, sequence: Tensor, sizes: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        """Does what `ProjectedRecurrence.run` does."""
        if sizes is not None:
            raise ModelError(PACKED)
        ends: list[State] = []
        sequence = sequence.transpose(0, 1)  # (t, n, features)
        for layer, places in enumerate(self.layers):
            rows = slice(layer * len(places), (layer + 1) * len(places))
            first = (None, None) if state is None else (*(each[rows] for each in state), None)[:2]
            sequence, end = self._operator(places, sequence, first)
            ends.append(end)
        return sequence.transpose(0, 1), tuple(torch.cat(each) for each in zip(*ends, strict=True))

    def _operator(self, places: list[str], sequence: Tensor, first: tuple[Tensor | None, ...]) -> tuple[Tensor, State]:
        reads, keeps = (
            [effective(self.get_submodule(f"{side}_{place}")) for place in places] for side in ("input", "hidden")
        )
        biased = any(bias is not None for _, bias in (*reads, *keeps))
        inputs = (
            sequence,
            self._ordered([weight for weight, _ in reads]),
            self._ordered([weight for weight, _ in keeps]),
            torch.cat([self._ordered(list(starmap(_bias, each))) for each in (reads, keeps)], 1) if biased else None,
            None,  # lengths
            *first[: 1 + (self.mode == "LSTM")],
        )
        settings: dict[str, Any] = {
            "hidden_size": self.hidden_size,
            "direction": "bidirectional" if self.bidirectional else "forward",
        }
        if self.mode == "GRU":
            settings["linear_before_reset"] = 1
        steps, samples = sequence.shape[:2]
        end = (len(places), samples, self.hidden_size)
        shapes = [(steps, len(places), samples, self.hidden_size), end, end][: 3 if self.mode == "LSTM" else 2]
        found = symbolic_multi_out(self.mode, inputs, settings, dtypes=[sequence.dtype] * len(shapes), shapes=shapes)
        return found[0].transpose(1, 2).flatten(2), tuple(found[1:])

    def _ordered(self, matrices: list[Tensor]) -> Tensor:
        """Returns one for each direction as ONNX has them: gate by gate."""
        return torch.stack(matrices).index_select(1, self.order)


def _bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    return weight.new_zeros(len(weight)) if bias is None else bias
