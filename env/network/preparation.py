"""A network as it is studied: a copy with plain float32 weights, whatever it was trained with."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from plywise.compressors.errors import ModelError
from plywise.compressors.modules.assembly import copied

NAMED = 4
"""Places that a note names, at most."""

HARMLESS = ("QuantStub", "DeQuantStub", "FloatFunctional")
"""Modules of torch.ao that compute on floats."""


@dataclass(frozen=True)
class Prepared:
    """What becomes of a user's network.

    Attributes:
        model: a copy in eval mode, on the CPU, in float32, without hooks and wrappers, with plain parameters.
        notes: what was changed, a sentence each.
        dtypes: which floats its parameters and buffers were, by name, where not float32.
        hooked: modules, by name, whose hooks stay with the user's network.
    """

    model: nn.Module
    notes: tuple[str, ...]
    dtypes: Mapping[str, torch.dtype]
    hooked: tuple[str, ...]


def prepare(model: nn.Module, numbers: bool = True) -> Prepared:
    """Returns a network ready to be studied.

    Weight norm, spectral norm, masks of `torch.nn.utils.prune` and parametrizations become part of the weights, as
    torch's own functions that remove them do it.

    Args:
        model: left untouched.
        numbers: whether its weights matter; where not, they may lie on the meta device.

    Raises:
        ModelError: where it is of a kind that cannot be compressed.
    """
    _check(model, numbers)
    new, wrappers = _unwrapped(model)
    notes = [f"{_listed(wrappers)} taken off"] if wrappers else []
    new.eval()
    notes += _fold(new)
    tensors = _tensors(new)
    dtypes = {name: each.dtype for name, each in tensors.items() if _is_other_float(each)}
    if dtypes:
        kinds = sorted({str(dtype).removeprefix("torch.") for dtype in dtypes.values()})
        notes.append(f"studied and handed over in float32; the network is in {', '.join(kinds)}")
    devices = sorted({str(each.device) for each in tensors.values()} - {"cpu"})
    if devices:
        notes.append(f"studied on the CPU; the network is on {', '.join(devices)}")
    hooked = tuple(name for name, module in model.named_modules() if _has_hooks(module))
    return Prepared(new.float().cpu() if numbers else new.float(), tuple(notes), dtypes, hooked)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a network into eval mode and each of its modules back into the one that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _is_other_float(values: Tensor) -> bool:
    return values.is_floating_point() and values.dtype != torch.float32


def _has_hooks(module: nn.Module) -> bool:
    before = [hook for hook in module._forward_pre_hooks.values() if not isinstance(hook, tuple(FOLDED))]
    return bool(before or module._forward_hooks)


def _check(model: nn.Module, numbers: bool) -> None:
    """Raises ModelError on what is refused, saying what was given, why, and what to do."""
    for name, module in model.named_modules():
        what = f"{name or 'the network'} is a {type(module).__name__}"
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"{what}: TorchScript hides its layers; give the module that it was made from")
        if type(module).__module__.startswith(("torch.ao.", "torchao.")) and type(module).__name__ not in HARMLESS:
            raise ModelError(
                f"{what} of {type(module).__module__}: it is quantised already; give the network as it was in floats"
            )
    for name, values in _tensors(model).items():
        reason = _refused(values)
        if reason is not None and (numbers or not values.is_meta):
            raise ModelError(f"{name} {reason}")


def _refused(values: Tensor) -> str | None:
    if is_lazy(values):
        return "has no shape yet; run the network once on real inputs"
    if values.is_meta:
        return "is on the meta device, without numbers; load the weights first"
    if values.is_complex():
        return f"is {values.dtype}: there is no technique for complex numbers; keep real and imaginary parts apart"
    if values.is_quantized or is_traceable_wrapper_subclass(values.data):
        return f"is a {type(values.data).__name__} of {values.dtype}, which is no plain tensor; give the float network"
    if values.layout != torch.strided:
        return f"is stored as {values.layout}; make it dense: module.weight = nn.Parameter(module.weight.to_dense())"
    return None


def _unwrapped(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Returns a copy without what torch.compile and data parallelism put around modules, and the wrappers' names."""
    known: dict[int, Any] = {}
    wrappers: list[str] = []
    for module in model.modules():
        hooks = module._forward_pre_hooks
        # What `_fold` looks for is copied along.
        kept = {key: hook for key, hook in hooks.items() if isinstance(hook, tuple(FOLDED))}
        known[id(hooks)] = type(hooks)(kept)
    for module in reversed(list(model.modules())):  # inner ones first
        if (inner := _inside(module)) is not None:
            known[id(module)] = known[id(inner)] if id(inner) in known else copied(inner, known)
            wrappers.append("torch.compile" if "_orig_mod" in module._modules else type(module).__name__)
    return copied(model, known), sorted(set(wrappers))


def _inside(module: nn.Module) -> nn.Module | None:
    if isinstance(module, DataParallel | DistributedDataParallel):
        inner: nn.Module = module.module
        return inner
    return module._modules.get("_orig_mod")


def _fold(model: nn.Module) -> Iterator[str]:
    """Makes the parameters of a network plain ones and yields what was done."""
    done: dict[str, list[str]] = {}
    for name, module in list(model.named_modules()):
        for hook in list(module._forward_pre_hooks.values()):
            what, remove = FOLDED[next(kind for kind in FOLDED if isinstance(hook, kind))]
            key = hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name
            remove(module, key)
            done.setdefault(what, []).append(f"{name}.{key}".lstrip("."))
        if is_parametrized(module):
            kind = type(module)  # of which torch takes the parametrization away, for the user's network as well
            module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
            for key in list(module.parametrizations):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    remove_parametrizations(module, key, leave_parametrized=True)
                done.setdefault("parametrizations", []).append(f"{name}.{key}".lstrip("."))
    for what, places in done.items():
        yield f"{what} made part of {_listed(places)}"


FOLDED: Mapping[type, tuple[str, Callable[[nn.Module, str], Any]]] = {
    WeightNorm: ("weight norm", remove_weight_norm),
    SpectralNorm: ("spectral norm", remove_spectral_norm),
    prune.BasePruningMethod: ("pruning masks", prune.remove),
}
"""For the hooks of torch that make weights anew before each run: what to call them, and what removes them for good."""


def _listed(names: Sequence[str]) -> str:
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return ", ".join([*names[:NAMED], *more])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])
