"""Networks with some modules exchanged, sharing everything else with the original.

A forward may ask a layer for its settings, so what takes its place answers as it did.
"""

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from plywise.compressors.errors import ModelError
from plywise.compressors.modules.branches import Branches
from plywise.compressors.modules.layers import WEIGHTED, bias_of

READ, MADE = ("in_channels", "in_features"), ("out_channels", "out_features", "embedding_dim")
"""Names of settings that say how many channels a layer reads and how many it makes."""


HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
)
"""Attributes of a module that hold what others want to be told of its runs."""


class AroundLayer(nn.Module):
    """A module that holds the layer in whose place it stands; a forward that asks for its weights gets the layer's.

    Attributes:
        layer: the layer, or what it has become.
    """

    layer: nn.Module

    @property
    def weight(self) -> Tensor:
        """In the shape that torch gives it."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """`(out,)`, or None where there is none."""
        return bias_of(self.layer)


def assemble(model: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """Returns a network whose modules at the dotted names are the given ones.

    Only the containers on the way are copied (without their hooks); all other modules are the original's own. A module
    that has several names is exchanged under all of them. One of the given ones may hold others, or be the network
    itself (its name is empty). Each is made to answer as the module whose place it takes (`answer_as`).
    """
    made = {model.get_submodule(name): module for name, module in replacements.items()}
    for original, module in made.items():
        answer_as(module, original)
    around = {name[:end] for name in replacements for end in range(len(name)) if end == 0 or name[end] == "."}
    holding = {original: made.pop(original) for original in map(model.get_submodule, around & {*replacements})}
    new = _assembled(model, made, holding)
    return _bare(new) if new is model else new


def _assembled(
    module: nn.Module, made: dict[nn.Module, nn.Module], holding: Mapping[nn.Module, nn.Module]
) -> nn.Module:
    """Returns what becomes of a module, and notes it in `made`; some become others `holding` what is exchanged."""
    if module not in made:
        base = holding.get(module, module)
        parts = {name: part and _assembled(part, made, holding) for name, part in base._modules.items()}
        made[module] = base
        if any(part is not base._modules[name] for name, part in parts.items()):
            made[module] = _bare(base)
            made[module]._modules = parts
    return made[module]


def _bare(module: nn.Module) -> nn.Module:
    """Returns a copy without hooks that shares tensors and parts with the module."""
    new = copy.copy(module)
    new._modules = dict(module._modules)
    for name in HOOKS:
        setattr(new, name, type(getattr(module, name))())
    return new


def copied(model: nn.Module, known: Mapping[int, Any] = MappingProxyType({})) -> nn.Module:
    """Returns a deep copy of a network without hooks; tensors that a forward or a hook has kept lose their graph.

    Args:
        model: left untouched.
        known: copies of some of its parts, by the `id` of the part.

    Raises:
        ModelError: where something in it cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        memo |= {id(getattr(module, name)): type(getattr(module, name))() for name in HOOKS}
        for value in tree_leaves(list(vars(module).values())):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    memo.update(known)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # objects of a user's own may raise anything
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}); keep what cannot be copied, "
            "such as locks, files and connections, outside of the network's attributes"
        ) from error


def answer_as(module: nn.Module, original: nn.Module) -> None:
    """Gives a module the settings of the one in whose place it stands, such as `stride`, where it has none itself.

    Numbers of channels are those that the module reads and makes itself, for a forward may reshape by them.

    Args:
        module: changed in place; its own settings stay.
        original: a layer, or what took its place before.
    """
    for name, value in vars(original).items():
        if name.startswith("_") or name == "weight_format" or hasattr(module, name):
            continue
        setattr(module, name, answered(module, name, value))


def answered(module: nn.Module, name: str, setting: Any) -> Any:
    """Returns what a setting of a layer is, once `module` has taken its place.

    Args:
        module: a leaf or what holds leaves.
        name: of the setting.
        setting: of the layer.
    """
    if name not in (*READ, *MADE):
        return setting
    count = widths(module)[name in MADE]
    return setting if count is None else count


def widths(module: nn.Module) -> tuple[int | None, int | None]:
    """Returns how many channels the leaves of a module read and make; None where it has none that says."""
    reads = (getattr(leaf, name, None) for leaf in module.modules() if isinstance(leaf, WEIGHTED) for name in READ)
    return next((count for count in reads if count is not None), None), _makes(module)


def _makes(module: nn.Module) -> int | None:
    """Returns how many channels the last leaf makes; all of them together where several lie side by side."""
    if isinstance(module, WEIGHTED):
        made: int = next(getattr(module, name) for name in MADE if hasattr(module, name))
        return made
    counts = [count for child in module.children() if (count := _makes(child)) is not None]
    return (sum(counts) if isinstance(module, Branches) else counts[-1]) if counts else None
