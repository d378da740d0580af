"""One forward pass, watched: which modules run, in which order, on what, and what reads their outputs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plywise.env.task.forward import Run

RELUS = ("relu", "relu_", "hardtanh", "hardtanh_", "clamp", "clamp_min")
"""Names of the operators that a ReLU or ReLU6 becomes."""


@dataclass
class Call:
    """One run of a leaf module.

    Attributes:
        name: its dotted name.
        input_shape, output_shape: without the batch dimension.
        numbers: that it reads, of all inputs.
        readers: names of the operators that read the output, in order.
        reading_modules: leaf modules that take the output as it is.
        relu: `(low, high)` of the ReLU that directly follows, or None.
    """

    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    numbers: int
    readers: list[str] = field(default_factory=list)
    reading_modules: list[str] = field(default_factory=list)
    relu: tuple[float, float] | None = None


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operator that reads the output of a watched call."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.produced: dict[int, Call] = {}
        self.alive: list[Tensor] = []  # ids stay unique only while the tensors live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            call = self.produced.get(id(leaf)) if isinstance(leaf, Tensor) else None
            if call is not None:
                name = func.overloadpacket.__name__
                call.readers.append(name)
                if len(call.readers) == 1 and name in RELUS:
                    call.relu = _bounds(name, args)
        return func(*args, **(kwargs or {}))


def _bounds(name: str, args: tuple[Any, ...]) -> tuple[float, float] | None:
    if name.startswith("relu"):
        return 0.0, float("inf")
    low = args[1] if len(args) > 1 else -1.0
    high = args[2] if len(args) > 2 and args[2] is not None else float("inf")
    return (0.0, float(high)) if isinstance(low, int | float) and low == 0 else None


def trace(model: nn.Module, run: Run) -> list[Call]:
    """Runs `model` once by `run` and returns the calls of its leaf modules in order."""
    calls: list[Call] = []
    with torch.no_grad(), _Watch() as watch, _hooks(model, calls, watch):
        run(model)
    for call in calls:
        # A ReLU decides the range only where nothing else reads the raw output; in place, all read it after.
        if call.relu is not None and len(call.readers) > 1 and not call.readers[0].endswith("_"):
            call.relu = None
    return calls


class _Names(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the name of each operator and the shapes that it reads."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [tuple(leaf.shape) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.found.append(f"{func} {shapes}")
        return func(*args, **(kwargs or {}))


def operators(model: nn.Module, run: Run) -> list[str]:
    """Returns what a forward pass by `run` runs, in order: what decides about time besides modules."""
    names = _Names()
    with torch.no_grad(), names:
        run(model)
    return names.found


def read_by(args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor | None:
    """Returns the tensor that a module with these arguments reads: the first one."""
    return next((value for value in (*args, *keywords.values()) if isinstance(value, Tensor)), None)


@contextmanager
def _hooks(model: nn.Module, calls: list[Call], watch: _Watch) -> Iterator[None]:
    handles = []

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            call = watch.produced.get(id(read_by(args, keywords)))
            if call is not None:
                call.reading_modules.append(name)

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            read = read_by(args, keywords)
            if read is None or not isinstance(output, Tensor):
                return
            if output is read and id(output) in watch.produced:
                return  # nn.Identity or an in-place ReLU: what follows reads the call before it
            call = Call(name, tuple(read.shape[1:]), tuple(output.shape[1:]), read.numel())
            calls.append(call)
            watch.produced[id(output)] = call
            watch.alive.extend((read, output))

        return hook

    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(after(name), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
