"""Networks with some modules exchanged, sharing everything else with the original."""

import copy
from collections.abc import Mapping

from torch import nn


def assemble(model: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """Returns a network whose modules at the dotted names are the given ones.

    Only the containers on the way are copied (without their hooks); all other modules are the original's own.
    """
    return _assembled(model, {tuple(name.split(".")): module for name, module in replacements.items()})


def _assembled(module: nn.Module, replacements: Mapping[tuple[str, ...], nn.Module]) -> nn.Module:
    new = copy.copy(module)
    new._modules = dict(module._modules)
    new._forward_hooks = type(module._forward_hooks)()
    new._forward_pre_hooks = type(module._forward_pre_hooks)()
    inside: dict[str, dict[tuple[str, ...], nn.Module]] = {}
    for path, replacement in replacements.items():
        if len(path) == 1:
            new._modules[path[0]] = replacement
        else:
            inside.setdefault(path[0], {})[path[1:]] = replacement
    for name, below in inside.items():
        child = new._modules[name]
        assert child is not None, f"no module {name!r} to replace something in"
        new._modules[name] = _assembled(child, below)
    return new
