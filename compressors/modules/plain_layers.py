"""Layers that run a plain layer of torch, perhaps with something before or behind it, with that layer to be seen."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from plywise.compressors.modules.assembly import assemble
from plywise.compressors.modules.layers import bias_of, make_layer, weight_of
from plywise.compressors.modules.own_forward import INSIDE, OwnForward, is_own, kernel_call

TENSORS = ("input", "weight", "bias")
"""Arguments of a kernel that are no settings."""


def with_plain_layers(model: nn.Module, run: Callable[[nn.Module], Any]) -> nn.Module:
    """Returns a network of the same function in which plain layers run inside of those derived from them.

    A layer stays as it is where the result is not the same on what it sees (it changes its weights before it uses
    them, for one) and where others share its weights.

    Args:
        model: in eval mode; left untouched, and returned itself where nothing changes.
        run: runs a network on a few real inputs.
    """
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    candidates = {
        name: module
        for name, module in model.named_modules()
        if (is_own(module) or _is_transposed_linear(module))
        and not is_parametrized(module)
        and owners[id(module._parameters.get("weight"))] == 1
    }
    if not candidates:
        return model
    runs = _watched(model, candidates, run)
    plain = {name: new for name, module in candidates.items() if (new := _plain(module, runs[name])) is not None}
    return plain[""] if "" in plain else assemble(model, plain) if plain else model


def _is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is what the package transformers calls Conv1D: `x @ W + b` with `W` `(in, out)`."""
    weight = module._parameters.get("weight")
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and weight is not None and weight.dim() == 2


@dataclass
class _Run:
    """One run of a module.

    Attributes:
        args: positional and keyword arguments, copied, for they may be written over later.
        kernels: arguments and output of each kernel that was called with its weight.
        expected: the output, copied.
        bare: whether it does nothing but call the kernel.
    """

    args: tuple[tuple[Any, ...], dict[str, Any]]
    kernels: list[tuple[dict[str, Any], Any]] = field(default_factory=list)
    expected: Any = None
    bare: bool = False


class _Kernels(TorchFunctionMode):
    """Notes each kernel that is called with one of the given weights."""

    def __init__(self, runs: Mapping[int, list[_Run]]) -> None:
        super().__init__()
        self.runs = runs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        call = kernel_call(func, args, kwargs or {})
        runs = None if call is None else self.runs.get(id(call["weight"]))
        if call is not None and runs:
            runs[-1].kernels.append((call, output))
        return output


def _watched(
    model: nn.Module, modules: Mapping[str, nn.Module], run: Callable[[nn.Module], Any]
) -> dict[str, list[_Run]]:
    runs: dict[str, list[_Run]] = {name: [] for name in modules}

    def before(name: str) -> Any:
        return lambda module, args, kwargs: runs[name].append(_Run(_copied((args, kwargs))))

    def behind(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            run = runs[name][-1]
            run.expected = _copied(output)
            run.bare = len(args) == 1 and all(call["input"] is args[0] and made is output for call, made in run.kernels)

        return hook

    handles: list[Any] = []
    for name, module in modules.items():
        handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
        handles.append(module.register_forward_hook(behind(name)))
    try:
        with torch.no_grad(), _Kernels({id(modules[name].weight): found for name, found in runs.items()}):
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return runs


def _copied(values: Any) -> Any:
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, values)


def _plain(module: nn.Module, runs: list[_Run]) -> nn.Module | None:
    """Returns what takes a module's place, or None where nothing computes the same."""
    if not runs:
        return None
    new = _linear(module) if _is_transposed_linear(module) else _split(module, runs)
    with torch.no_grad():
        try:
            same = new is not None and all(_alike(new(*run.args[0], **run.args[1]), run.expected) for run in runs)
        except Exception:  # a user's forward may raise anything where it finds no weights
            return None
    return new if same else None


def _linear(module: nn.Module) -> nn.Module:
    like = nn.Linear(1, 1, device="meta", dtype=weight_of(module).dtype).train(module.training)
    return make_layer(like, weight_of(module).T, bias_of(module))


def _split(module: nn.Module, runs: list[_Run]) -> nn.Module | None:
    """Returns the plain layer that a user's layer runs, inside of that one's forward unless it does nothing else."""
    if any(len(run.kernels) != 1 for run in runs) or INSIDE in module._modules:
        return None
    calls = [call for run in runs for call, _ in run.kernels]
    settings = [{name: value for name, value in call.items() if name not in TENSORS} for call in calls]
    adds = calls[0].get("bias") is not None
    if (
        any(each != settings[0] for each in settings)
        or (adds and any(call["bias"] is not module._parameters.get("bias") for call in calls))
        or settings[0].get("max_norm") is not None
        or any(True for part in module.children() for _ in part.children())
    ):
        return None
    if isinstance(module, nn.Embedding):
        settings[0] = {}
    plain = make_layer(module, weight_of(module), bias_of(module) if adds else None, **settings[0])
    if all(run.bare for run in runs):
        return plain
    new = OwnForward(module)
    new.add_module(INSIDE, plain)
    return new


def _alike(found: Any, expected: Any) -> bool:
    pairs = zip(tree_leaves(found), tree_leaves(expected), strict=True)
    return all(
        torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
        for one, other in pairs
        if isinstance(other, Tensor) and other.numel()
    )
