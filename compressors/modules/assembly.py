"""Networks with some modules exchanged, sharing everything else with the original.

A forward may ask a layer for its settings, so what takes its place answers as it did.
"""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from plywise.compressors.modules.branches import Branches
from plywise.compressors.modules.layers import WEIGHTED, bias_of

READ, MADE = ("in_channels", "in_features"), ("out_channels", "out_features", "embedding_dim")
"""Names of settings that say how many channels a layer reads and how many it makes."""


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

    Only the containers on the way are copied (without their hooks); all other modules are the original's own. Each of
    the given ones is made to answer as the module whose place it takes (`answer_as`). One of them may hold others, or
    be the network itself (its name is empty).
    """
    inside = {tuple(name.split(".")): module for name, module in replacements.items() if name}
    return _assembled(replacements.get("", model), inside)


def _assembled(module: nn.Module, replacements: Mapping[tuple[str, ...], nn.Module]) -> nn.Module:
    new = copy.copy(module)
    new._modules = dict(module._modules)
    new._forward_hooks = type(module._forward_hooks)()
    new._forward_pre_hooks = type(module._forward_pre_hooks)()
    inside: dict[str, dict[tuple[str, ...], nn.Module]] = {}
    for path, replacement in replacements.items():
        if len(path) == 1:
            if path[0] in module._modules:
                answer_as(replacement, module.get_submodule(path[0]))
            new._modules[path[0]] = replacement
        else:
            inside.setdefault(path[0], {})[path[1:]] = replacement
    for name, below in inside.items():
        child = new._modules[name]
        assert child is not None, f"no module {name!r} to replace something in"
        new._modules[name] = _assembled(child, below)
    return new


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
