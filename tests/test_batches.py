"""Batches and outputs of any nesting: told apart, cut, joined and rebuilt."""

from collections import OrderedDict, UserDict
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from plywise.env.task.batch import alike, as_studied, items_in, joined, mapped, named_tensors, part, shapes_of, splits
from plywise.env.task.interface import Interface


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Outputs:
    logits: Any
    hidden: Any = None


def of(count, length=3):
    """Batches of `count` items, each of another nesting."""
    tensor = torch.arange(count * length, dtype=torch.float32).reshape(count, length)
    return {
        "tensor": tensor,
        "tuple": (tensor, torch.arange(count)),
        "list": [tensor, [tensor + 1]],
        "dictionary": {"x": tensor, "mask": tensor > 2, "name": "fixed"},
        "ordered": OrderedDict(x=tensor),
        "namedtuple": Pair(tensor, (tensor, None)),
        "dataclass": Outputs(tensor, (tensor,)),
    }


@pytest.mark.parametrize("kind", of(1))
def test_parts_joined_are_the_whole(kind):
    whole = of(10)[kind]
    parts = [part(whole, 0, 4), part(whole, 4, 8), part(whole, 8, 10)]
    assert [items_in(each) for each in parts] == [4, 4, 2]
    assert all(alike(each, whole) for each in parts)
    again = joined(parts)
    assert type(again) is type(whole)
    found, expected = named_tensors(again), named_tensors(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("kind", of(1))
def test_a_change_of_each_tensor_leaves_the_rest(kind):
    changed = mapped(of(4)[kind], lambda tensor: tensor.float() + 1)
    for name, tensor in named_tensors(of(4)[kind]).items():
        assert torch.equal(named_tensors(changed)[name], tensor.float() + 1)


def test_a_mapping_that_cannot_be_built_from_a_dictionary_becomes_one():
    class Named(UserDict):
        def __init__(self, values, name):
            super().__init__(values)
            self.name = name

    changed = mapped(Named({"x": torch.zeros(2)}, "given"), lambda tensor: tensor + 1)
    assert torch.equal(changed["x"], torch.ones(2))


@dataclass(frozen=True)
class Late:
    """Outputs that may not be written to, one of which no constructor takes."""

    logits: Any
    extra: Any = field(init=False, default=None)


def test_outputs_of_any_dataclass_are_rebuilt():
    given = Late(torch.zeros(2))
    object.__setattr__(given, "extra", torch.zeros(3))
    changed = mapped(given, lambda tensor: tensor + 1)
    assert type(changed) is Late
    assert torch.equal(changed.logits, torch.ones(2))
    assert torch.equal(changed.extra, torch.ones(3))
    assert float(given.logits.sum() + given.extra.sum()) == 0.0
    with pytest.raises(FrozenInstanceError):
        changed.logits = None


def test_names_say_where_a_tensor_is():
    assert list(named_tensors(Outputs(torch.zeros(2), (torch.zeros(2),)))) == ["logits", "hidden.0"]
    assert list(named_tensors({"a": [torch.zeros(1), {"b": torch.zeros(1)}]})) == ["a.0", "a.1.b"]
    assert list(named_tensors(torch.zeros(1))) == [""]


def test_tensors_of_one_name_are_told_apart_and_none_is_lost():
    one, two = torch.zeros(1), torch.ones(1)
    assert named_tensors({"a.b": one, "a": {"b": two}, "a.b_2": one}) == {"a.b": one, "a.b_2": two, "a.b_2_2": one}

    class Clashing(nn.Module):
        def forward(self, x, given):
            return {"a.b": x, "a": {"b": 2 * x}, "a_b": 3 * x, "x": 4 * x}

    inputs = {"x": torch.ones(2, 3), "given": {"y.z": one, "y_z": two}}
    interface = Interface.of(Clashing(), lambda model, batch: model(**batch), inputs)
    assert interface.output_names == ("a_b", "a_b_2", "a_b_3", "x_output")
    assert list(interface.inputs) == ["x", "given_y_z", "given_y_z_2"]


def test_batches_of_other_lengths_or_types_are_not_alike():
    first = {"x": torch.zeros(4, 3)}
    assert alike(first, {"x": torch.zeros(9, 3)})
    for other in ({"x": torch.zeros(4, 5)}, {"y": torch.zeros(4, 3)}, {"x": torch.zeros(4, 3, dtype=torch.int64)}):
        assert not alike(first, other)


def test_tensors_without_items_stay_whole():
    batch = {"x": torch.zeros(6, 2), "scale": torch.tensor(2.0), "table": torch.zeros(5, 2)}
    assert not splits(batch)
    assert splits({"x": torch.zeros(6, 2), "y": torch.zeros(6)})
    some = part(batch, 0, 2)
    assert (len(some["x"]), float(some["scale"]), len(some["table"])) == (2, 2.0, 5)


def test_batches_are_studied_in_float32_and_without_gradients():
    batch = as_studied((torch.zeros(2, dtype=torch.float64, requires_grad=True), torch.zeros(2, dtype=torch.int64)))
    assert (batch[0].dtype, batch[0].requires_grad, batch[1].dtype) == (torch.float32, False, torch.int64)


def test_a_batch_is_told_in_words():
    assert shapes_of(torch.zeros(2, 3)) == "a tensor (2, 3) float32"
    assert shapes_of({"x": torch.zeros(2), "n": 3}) == "a dict of x: (2,) float32"
    assert shapes_of([]) == "a list of no tensors"
