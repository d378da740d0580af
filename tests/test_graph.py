"""The record of one forward pass, from which the structure of a network is read."""

from typing import Any

import torch
from torch import Tensor, nn

from plywise.env.network.calls import calls_in
from plywise.env.network.graph import Entry, Exit, Graph, Operator, Value, read_by


class Adding(nn.Module):
    """Adds what it reads to what a layer makes of it, then writes over the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.nothing = nn.Linear(4, 4), nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.nothing(self.layer(inputs) + inputs).relu_()


def graph(model: nn.Module) -> Graph:
    inputs = torch.ones(2, 4)
    return Graph.of(model, lambda net: net(inputs))


def test_steps_are_in_order_and_values_are_told_apart() -> None:
    steps = graph(Adding()).steps
    told = [(type(step).__name__, step.name if isinstance(step, Operator) else step.module) for step in steps]
    assert told == [
        ("Entry", ""),
        ("Entry", "layer"),
        ("Operator", "t"),
        ("Operator", "addmm"),
        ("Exit", "layer"),
        ("Operator", "add"),
        ("Entry", "nothing"),
        ("Exit", "nothing"),
        ("Operator", "relu_"),
        ("Exit", ""),
    ]
    whole, layer, _, _, left, add, _, nothing, relu, end = steps
    assert isinstance(whole, Entry)
    assert isinstance(layer, Entry)
    assert isinstance(left, Exit)
    assert isinstance(add, Operator)
    assert isinstance(nothing, Exit)
    assert isinstance(relu, Operator)
    assert isinstance(end, Exit)
    assert whole.read == layer.read
    assert left.output is not None
    assert (left.output.shape, left.changed) == ((2, 4), False)
    assert add.reads == [left.output, layer.read]
    assert nothing.output is not None
    assert (nothing.made, nothing.changed) == (None, True)
    assert relu.reads == [nothing.output]
    assert (end.made, end.changed) == (Value(nothing.output.number, 1, (2, 4)), False)


def test_operators_are_told_with_what_they_read() -> None:
    assert graph(Adding()).operators == [
        "aten.t.default [(4, 4)]",
        "aten.addmm.default [(4,), (2, 4), (4, 4)]",
        "aten.add.Tensor [(2, 4), (2, 4)]",
        "aten.relu_.default [(2, 4)]",
    ]


def test_a_module_that_makes_nothing_is_no_call() -> None:
    first, second = calls_in(
        graph(nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.ReLU(inplace=True), nn.Linear(4, 4)))
    )
    assert (first.name, first.readers, first.reading_modules) == ("0", ["relu_", "addmm"], ["1", "2", "3"])
    assert (first.relu, second.name) == ((0.0, float("inf")), "3")


def test_a_module_reads_the_first_tensor_in_any_nesting() -> None:
    first, second = torch.ones(1), torch.ones(2)
    found: Any = read_by(("mode", [first, second]), {"other": second})
    assert found is first
    assert read_by((), {"mode": None, "states": {"last": second}}) is second
    assert read_by(("mode",), {}) is None


def test_the_network_is_as_before() -> None:
    model = Adding()
    graph(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
