"""Recurrences whose matrices are linear layers of their own, in the place of torch's `nn.LSTM` and `nn.GRU`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from plywise.compressors.modules.layers import mark_recurrent

KERNELS: dict[str, tuple[Callable[..., tuple[Tensor, ...]], int]] = {
    "LSTM": (torch._VF.lstm, 4),
    "GRU": (torch._VF.gru, 3),
}
"""Of each kind of recurrence torch's kernel and the number of its gates."""

Steps = Tensor | PackedSequence
"""What recurrences read and put out."""

State = tuple[Tensor, ...]
"""`(layers * directions, n, hidden)`: hidden states, and those of the cells of an LSTM."""


class ProjectedRecurrence(nn.Module):
    """Computes what `nn.LSTM` or `nn.GRU` computes, with layers that techniques can compress.

    For each layer and direction there are two: `input_l0` makes of the inputs their share of the gates, `hidden_l0` of
    the hidden states theirs; those of the other direction end in `_reverse`. torch's kernels take their weights, so
    neither is called, unless a hook watches it: then it runs on what the kernel sees, `(n, t, ...)`, and its outputs go
    no further. Other weights that a hook gives it count from there on.

    The gates of a hidden unit are neighbouring rows, so that whole units can be told apart.

    Attributes:
        mode: `LSTM` or `GRU`.
        num_layers, bidirectional, batch_first, dropout: as torch names them.
    """

    def __init__(self, source: nn.RNNBase) -> None:
        """Takes over a copy of the weights of a recurrence that `refusal_of_recurrence` has no objection to."""
        super().__init__()
        self.mode = source.mode
        self.num_layers, self.bidirectional = source.num_layers, source.bidirectional
        self.batch_first, self.dropout = source.batch_first, source.dropout
        for place in self.places:
            for side, key in (("input", "ih"), ("hidden", "hh")):
                weight = source.get_parameter(f"weight_{key}_{place}")
                bias = source.get_parameter(f"bias_{key}_{place}") if source.bias else None
                self.add_module(f"{side}_{place}", self._projection(weight, bias))
        self.train(source.training)

    @property
    def gates(self) -> int:
        """Rows of each matrix that make up a hidden unit."""
        return KERNELS[self.mode][1]

    @property
    def input_size(self) -> int:
        """Features of the inputs: as many as the matrices read."""
        return self._reads("input_l0")

    @property
    def hidden_size(self) -> int:
        """Hidden units of each layer and direction: as many as the matrices read."""
        return self._reads("hidden_l0")

    @property
    def layers(self) -> list[list[str]]:
        """The places of each layer, one for each direction."""
        places, directions = self.places, 1 + self.bidirectional
        return [places[at : at + directions] for at in range(0, len(places), directions)]

    @property
    def places(self) -> list[str]:
        """The ends of the names of torch's parameters, in the order in which they run."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [f"l{layer}{direction}" for layer in range(self.num_layers) for direction in directions]

    def flatten_parameters(self) -> None:
        """Does nothing: torch puts its weights side by side for graphics cards."""

    def forward(self, input: Steps, hx: Tensor | State | None = None) -> tuple[Steps, Tensor | State]:
        """Arguments and results are those of `nn.LSTM` or `nn.GRU`."""
        state = (hx,) if isinstance(hx, Tensor) else hx
        if isinstance(input, PackedSequence):
            data, sizes, order, back = input
            hidden, ends = self.run(data, sizes, _picked(state, order))
            return PackedSequence(hidden, sizes, order, back), self._given(_picked(ends, back))
        single, swap = input.dim() == 2, not self.batch_first and input.dim() == 3
        sequence = input[None] if single else input.transpose(0, 1) if swap else input
        if single and state is not None:
            state = tuple(each[:, None] for each in state)
        hidden, ends = self.run(sequence, None, state)
        if single:
            return hidden[0], self._given(tuple(each[:, 0] for each in ends))
        return hidden.transpose(0, 1) if swap else hidden, self._given(ends)

    def run(self, sequence: Tensor, sizes: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        """Returns the hidden states of the last layer, laid out like `sequence`, and the last states of all layers.

        Args:
            sequence: `(n, t, features)`; where `sizes` are given, the `data` of a packed sequence.
            sizes: the `batch_sizes` of a packed sequence, or None.
            state: to begin with; None for zeros.
        """
        ends: list[State] = []
        if state is None:
            count = sequence.shape[0] if sizes is None else int(sizes[0])
            zeros = sequence.new_zeros(len(self.places), count, self.hidden_size)
            state = (zeros, zeros) if self.mode == "LSTM" else (zeros,)
        for layer, places in enumerate(self.layers):
            rows = slice(layer * len(places), (layer + 1) * len(places))
            sequence, end = self._layer(places, sequence, sizes, tuple(each[rows] for each in state))
            ends.append(end)
            if self.training and self.dropout and layer < self.num_layers - 1:
                sequence = nn.functional.dropout(sequence, self.dropout)
        return sequence, tuple(torch.cat(each) for each in zip(*ends, strict=True))

    def _reads(self, name: str) -> int:
        leaf = next(part for part in self.get_submodule(name).modules() if isinstance(part, nn.Linear))
        return leaf.in_features

    def _projection(self, weight: Tensor, bias: Tensor | None) -> nn.Linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        for name, rows in (("weight", weight), ("bias", bias)):
            if rows is not None:
                own = _transposed(rows.detach(), self.gates).clone()
                setattr(layer, name, nn.Parameter(own, rows.requires_grad))
        return mark_recurrent(layer)

    def _given(self, state: State) -> Tensor | State:
        return state if self.mode == "LSTM" else state[0]

    def _layer(self, places: list[str], sequence: Tensor, sizes: Tensor | None, state: State) -> tuple[Tensor, State]:
        for place in places:
            inside = self.get_submodule(f"input_{place}")
            if _is_watched(inside):
                inside(_padded(sequence, sizes))
        hidden, end = self._kernel(places, sequence, sizes, state)
        watched = [place for place in places if _is_watched(self.get_submodule(f"hidden_{place}"))]
        if watched:
            parts = _padded(hidden, sizes).chunk(len(places), -1)
            for place in watched:
                direction = places.index(place)
                before = _earlier(parts[direction], state[0][direction], bool(direction))
                self.get_submodule(f"hidden_{place}")(before)
            hidden, end = self._kernel(places, sequence, sizes, state)
        return hidden, end

    def _kernel(self, places: list[str], sequence: Tensor, sizes: Tensor | None, state: State) -> tuple[Tensor, State]:
        pairs = [effective(self.get_submodule(f"{side}_{place}")) for place in places for side in ("input", "hidden")]
        biased = any(bias is not None for _, bias in pairs)
        weights: list[Tensor] = []
        for at in range(0, len(pairs), 2):
            both = pairs[at : at + 2]
            weights += [_transposed(weight, -self.gates) for weight, _ in both]
            if biased:
                weights += [
                    weight.new_zeros(len(weight)) if bias is None else _transposed(bias, -self.gates)
                    for weight, bias in both
                ]
        kernel, first = KERNELS[self.mode][0], state if self.mode == "LSTM" else state[0]
        settings: tuple[Any, ...] = (weights, biased, 1, 0.0, False, self.bidirectional)
        if sizes is None:
            hidden, *end = kernel(sequence, first, *settings, True)
        else:
            hidden, *end = kernel(sequence, sizes, first, *settings)
        return hidden, tuple(end)


def refusal_of_recurrence(module: nn.RNNBase) -> str | None:
    """Returns why a recurrence cannot be taken apart, or None where it can."""
    if type(module) not in (nn.LSTM, nn.GRU):
        return f"{type(module).__name__} is neither nn.LSTM nor nn.GRU: no technique for this kind of layer"
    if not set(module._flat_weights_names) <= set(module._parameters):
        return "its weights are made of other parameters (weight_norm, spectral_norm, prune); remove that first"
    if module.proj_size:
        return "an LSTM with proj_size has a third matrix; write it as nn.LSTM and nn.Linear"
    return None


def effective(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Returns weight `(out, in)` and bias `(out,)` of a linear layer or a chain of them; differentiable in theirs."""
    if not isinstance(module, nn.Sequential):
        layer: Any = module  # linear, or deployed as one
        return layer.weight, layer.bias
    first, *others = module
    weight, bias = effective(first)
    for part in others:
        over, own = effective(part)
        weight = over @ weight
        moved = None if bias is None else over @ bias
        bias = own if moved is None else moved if own is None else moved + own
    return weight, bias


def _picked(state: Any, order: Tensor | None) -> Any:
    """Returns states with their samples in another order."""
    return state if order is None or state is None else tuple(each.index_select(1, order) for each in state)


def _transposed(rows: Tensor, gates: int) -> Tensor:
    """Returns the rows `(gates * units, ...)` of torch with those of a unit side by side; back where `gates` < 0."""
    split = (gates, -1) if gates > 0 else (-1, -gates)
    return rows.reshape(*split, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)


def _is_watched(module: nn.Module) -> bool:
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def _padded(sequence: Tensor, sizes: Tensor | None) -> Tensor:
    """Returns `(n, t, features)`, with zeros behind the ends of packed sequences."""
    if sizes is None:
        return sequence
    return pad_packed_sequence(PackedSequence(sequence, sizes), batch_first=True)[0]


def _earlier(hidden: Tensor, first: Tensor, reverse: bool) -> Tensor:
    """Returns the hidden state `(n, t, hidden)` that each step starts from."""
    return torch.cat([hidden[:, 1:], first[:, None]] if reverse else [first[:, None], hidden[:, :-1]], 1)
