"""One forward pass as a record: which modules and operators run, in which order, and who reads whose outputs.

What else is known of a network's structure is read from this record: the order and shapes of layers, the ReLUs behind
them, shortcuts, which outputs can be remembered, and what a runtime's time depends on. It comes from a dispatch mode,
not from `torch.export`: that fails where a forward branches on data, and it drops what is changed in place.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from plywise.env.task.forward import Run


@dataclass(frozen=True)
class Value:
    """A tensor at one moment of the pass.

    Attributes:
        number: the same for the same tensor.
        version: how often it has been written over.
        shape: with the batch dimension.
    """

    number: int
    version: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """One run of an operator of torch.

    Attributes:
        function: its full name, such as `aten.add.Tensor`.
        args, kwargs: its arguments, with values in place of tensors.
    """

    function: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its short name, such as `add`; that of one which writes over its first argument ends in an underscore."""
        return self.function.split(".")[1]

    @property
    def reads(self) -> list[Value]:
        """The values among its arguments, one as often as it is there."""
        return _values((self.args, self.kwargs))


@dataclass(frozen=True)
class Entry:
    """A module begins to run.

    Attributes:
        module: its dotted name.
        reads: the values among its arguments.
        leaf: whether it has no modules inside.
    """

    module: str
    reads: tuple[Value, ...]
    leaf: bool

    @property
    def read(self) -> Value | None:
        """The one that counts as its input: see `read_by`."""
        return self.reads[0] if self.reads else None


@dataclass(frozen=True)
class Exit(Entry):
    """A module has run.

    Attributes:
        reads: the values among its arguments, as they are afterwards.
        output: what it returns, where that is one tensor.
        changed: whether the output is written over later on.
    """

    output: Value | None
    changed: bool

    @property
    def made(self) -> Value | None:
        """Its output, where that is not its input: `nn.Identity` and an in-place ReLU make nothing."""
        same = self.output is not None and self.read is not None and self.output.number == self.read.number
        return None if same else self.output


@dataclass(frozen=True)
class Graph:
    """The steps of one forward pass, in order."""

    steps: tuple[Operator | Entry, ...]

    @classmethod
    def of(cls, model: nn.Module, run: Run) -> "Graph":
        """Watches one pass, without gradients.

        Args:
            model: the network.
            run: runs it on some batch, which may be written over.
        """
        with _Watch() as watch, torch.no_grad(), watch.modules(model):
            run(model)
        return cls(tuple(watch.steps()))

    @property
    def operators(self) -> list[str]:
        """Each operator with the shapes that it reads: what decides about time besides the modules."""
        runs = (step for step in self.steps if isinstance(step, Operator))
        return [f"{step.function} {[value.shape for value in step.reads]}" for step in runs]


def read_by(args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor | None:
    """Returns the tensor that a module with these arguments reads: the first one, in any nesting."""
    return next((leaf for leaf in tree_leaves((args, keywords)) if isinstance(leaf, Tensor)), None)


def _values(arguments: Any) -> list[Value]:
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Value)]


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._steps: list[Operator | Entry] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[Tensor] = []  # ids stay unique only while the tensors live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._steps.append(Operator(str(func), *tree_map_only(Tensor, self._value, (args, kwargs or {}))))
        return func(*args, **(kwargs or {}))

    def steps(self) -> Iterator[Operator | Entry]:
        """Yields the steps, once the pass is over and it is known what was written over."""
        for step in self._steps:
            if isinstance(step, Exit) and step.output is not None:
                changed = self._alive[step.output.number]._version != step.output.version
                yield Exit(step.module, step.reads, step.leaf, step.output, changed)
            else:
                yield step

    @contextmanager
    def modules(self, model: nn.Module) -> Iterator[None]:
        """Notes as well when modules begin and end."""
        handles = []
        for name, module in model.named_modules():
            leaf = not any(True for _ in module.children())
            handles.append(module.register_forward_pre_hook(self._entering(name, leaf), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leaving(name, leaf), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str, leaf: bool) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self._steps.append(Entry(name, self._reads(args, keywords), leaf))

        return hook

    def _leaving(self, name: str, leaf: bool) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            made = self._value(output) if isinstance(output, Tensor) else None
            self._steps.append(Exit(name, self._reads(args, keywords), leaf, made, changed=False))

        return hook

    def _reads(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Value, ...]:
        return tuple(self._value(leaf) for leaf in tree_leaves((args, keywords)) if isinstance(leaf, Tensor))

    def _value(self, tensor: Tensor) -> Value:
        if id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = len(self._alive)
            self._alive.append(tensor)
        return Value(self._numbers[id(tensor)], tensor._version, tuple(tensor.shape))
