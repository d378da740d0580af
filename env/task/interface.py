"""How a network's arguments and outputs, which may be nested, go with the named inputs and outputs of a file."""

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.errors import ModelError
from plywise.env.task.batch import Batch, free_name, items_in, mapped, named_tensors, tensors_in
from plywise.env.task.forward import Forward, arguments_of

INPUT, OUTPUT = "input", "output"
"""Names where there is one of each and the network gives it none."""


@dataclass(frozen=True)
class Interface:
    """Of one network.

    Attributes:
        signature: of its forward.
        arguments: of a call, by parameter.
        outputs: of that call.
        plain: whether it is called with one tensor and nothing else.
    """

    signature: inspect.Signature
    arguments: Mapping[str, Any]
    outputs: Any
    plain: bool

    @classmethod
    def of(cls, model: nn.Module, forward: Forward, batch: Batch) -> "Interface":
        """Looks at how a forward step calls a network on a batch.

        Raises:
            ModelError: where it calls the network several times, or not itself but parts of it.
        """
        args, kwargs, outputs = arguments_of(model, forward, batch)
        signature = inspect.signature(model.forward)
        plain = len(args) == 1 and isinstance(args[0], Tensor) and not kwargs
        return cls(signature, dict(signature.bind(*args, **kwargs).arguments), outputs, plain)

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """The tensors among the arguments, by their name in the file."""
        found = self._named(self.arguments)
        return {INPUT: next(iter(found.values()))} if self.plain else found

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """Of the tensors among the outputs."""
        if isinstance(self.outputs, Tensor):
            return (OUTPUT,)
        found: list[str] = []
        for given in named_tensors(self.outputs):
            name = given.replace(".", "_")
            name = f"{OUTPUT}_{name}" if name[:1].isdigit() else name
            name = f"{name}_{OUTPUT}" if name in self.inputs else name
            found.append(free_name(name, {*found, *self.inputs}))
        return tuple(found)

    @property
    def is_simple(self) -> bool:
        """Whether one tensor goes in and one comes out."""
        return self.plain and isinstance(self.outputs, Tensor)

    def has_items(self, name: str) -> bool:
        """Returns whether an input has the items of a batch along its first axis."""
        tensor = self.inputs[name]
        return tensor.dim() > 0 and len(tensor) == items_in(self.arguments)

    def at(self, count: int) -> dict[str, Tensor]:
        """Returns the inputs, by name, as a batch of a size: of each that has items, the first one many times.

        Args:
            count: items.
        """
        return {
            name: tensor[:1].expand(count, *tensor.shape[1:]).contiguous() if self.has_items(name) else tensor
            for name, tensor in self.inputs.items()
        }

    def report(self, any_batch: bool) -> dict[str, Any]:
        """Returns names, shapes and types of inputs and outputs, and how the network is called, as JSON values.

        It is called with one `tensor`, with tensors by `keywords`, or otherwise (`nested`).

        Args:
            any_batch: whether the file runs on any batch: the axis of the items is `batch` then, else 1.
        """
        inputs = [
            {
                "name": name,
                "shape": [("batch" if any_batch else 1), *tensor.shape[1:]]
                if self.has_items(name)
                else [*tensor.shape],
                "type": str(tensor.dtype).removeprefix("torch."),
            }
            for name, tensor in self.inputs.items()
        ]
        nested = not all(
            isinstance(value, Tensor) and self.signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD
            for name, value in self.arguments.items()
        )
        called = "tensor" if self.plain else "nested" if nested else "keywords"
        return {"inputs": inputs, "outputs": list(self.output_names), "called": called}

    def flat(self, model: nn.Module) -> nn.Module:
        """Returns a network that takes and gives tensors one after the other; it shares everything with `model`."""
        return with_forward(model, lambda *tensors: tuple(tensors_in(self._call(model, tensors))))

    def run_by(self, model: nn.Module, run: Callable[[dict[str, Tensor]], Sequence[Tensor]]) -> nn.Module:
        """Returns a network that is called as `model` is but has `run` compute the outputs from named inputs."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            arguments = self.signature.bind(*args, **kwargs).arguments
            found = self._named(arguments)
            if self.plain and len(found) == 1:
                found = {INPUT: next(iter(found.values()))}
            if found.keys() != self.inputs.keys():
                raise ModelError(
                    f"the file takes {', '.join(self.inputs)}, and the network is called with {', '.join(found)}; call "
                    "it the same way on every batch"
                )
            outputs = iter(run(found))
            return mapped(self.outputs, lambda _: next(outputs))

        return with_forward(model, forward)

    def _call(self, model: nn.Module, tensors: Iterable[Tensor]) -> Any:
        left = iter(tensors)
        bound = inspect.BoundArguments(self.signature, mapped(dict(self.arguments), lambda _: next(left)))
        return model.forward(*bound.args, **bound.kwargs)

    def _named(self, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        spread: dict[str, Any] = {}
        for name, value in arguments.items():
            keywords = self.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            spread |= value if keywords else {name: value}
        found: dict[str, Tensor] = {}
        for name, tensor in named_tensors(spread).items():
            found[free_name(name.replace(".", "_"), found)] = tensor
        return found


def with_forward(model: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """Returns a network that shares everything with `model` but its forward, and has no hooks."""
    changed = copy.copy(model)
    changed._forward_hooks, changed._forward_pre_hooks = OrderedDict(), OrderedDict()
    changed.__dict__["forward"] = forward
    return changed


def interface_of(model: nn.Module, inputs: Tensor) -> Interface:
    """Returns the interface of a network that is called with one tensor."""
    with torch.no_grad():
        return Interface.of(model, lambda network, batch: network(batch), inputs)
