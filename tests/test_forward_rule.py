"""How a network is called on a batch where the user does not say it, and what a forward step calls it with."""

import pytest
import torch
from torch import nn

from plywise.compressors.errors import ModelError
from plywise.env.task.forward import arguments_of, rule_for

X, MASK, LABELS = torch.randn(4, 3), torch.ones(4, 3), torch.arange(4)


def network(forward):
    """A network that returns the arguments of its forward."""
    return type("Net", (nn.Module,), {"forward": forward})()


def one(self, x):
    return x, None


def optional(self, x, mask=None):
    return x, mask


def two(self, x, mask):
    return x, mask


def anything(self, *xs):
    return xs


def named(self, input_ids, attention_mask=None, labels=None):
    return input_ids, attention_mask, labels


def keywords(self, **given):
    return given


def called(forward, batch):
    model = network(forward)
    return rule_for(model, batch)(model, batch)


@pytest.mark.parametrize(
    ("forward", "batch", "expected"),
    [
        (one, X, (X, None)),
        (one, (X, LABELS), (X, None)),
        (one, [X, MASK, LABELS], (X, None)),
        (optional, (X, MASK, LABELS), (X, MASK)),
        (optional, (X, LABELS), (X, None)),  # whole numbers, one an item, are labels
        (two, (X, LABELS), (X, LABELS)),  # but what is required is given
        (anything, (X, MASK, LABELS), (X, MASK)),
        (named, {"input_ids": X, "labels": LABELS}, (X, None, None)),
        (named, {"labels": LABELS, "attention_mask": MASK, "input_ids": X, "more": X}, (X, MASK, None)),
        (keywords, {"a": X, "target": LABELS}, {"a": X}),
    ],
)
def test_forward_gets_what_it_takes_and_never_labels(forward, batch, expected):
    found = called(forward, batch)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = found.values(), expected.values()
    assert all(one is other for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("forward", "batch", "said"),
    [
        (two, (X,), "a batch has 1 entries .* requires 2"),
        (named, {"ids": X}, "requires input_ids; rename them in the batches, or give forward_step"),
        (named, {"labels": LABELS}, "requires input_ids"),
    ],
)
def test_a_batch_that_lacks_something_is_told(forward, batch, said):
    with pytest.raises(ModelError, match=said):
        called(forward, batch)


def test_what_a_forward_step_calls_the_network_with_is_found():
    model = network(named)
    args, kwargs, outputs = arguments_of(model, lambda net, batch: net(batch["t"], attention_mask=MASK)[0], {"t": X})
    assert args[0] is X
    assert kwargs.keys() == {"attention_mask"}
    assert outputs == (X, MASK, None)
    assert not model._forward_hooks


@pytest.mark.parametrize("times", [0, 2])
def test_a_forward_step_that_makes_no_single_graph_is_told(times):
    with pytest.raises(ModelError, match=f"calls the network {times} times"):
        arguments_of(network(one), lambda net, batch: [net(batch) for _ in range(times)], X)
