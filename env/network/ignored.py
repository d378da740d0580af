"""Layers that a user wants left as they are."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from plywise.compressors.errors import ConfigurationError


def left_alone(model: nn.Module, ignored: Sequence[str | type]) -> set[str]:
    """Returns the names of all modules that are meant, and of those inside them.

    Args:
        model: the network.
        ignored: names (`head`), patterns of names (`head*`), types (`nn.Embedding`) and names of types (`Embedding`).

    Raises:
        ConfigurationError: where one fits no module.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    found: set[str] = set()
    for given in ignored:
        meant = [name for name, module in modules.items() if _fits(given, name, module)]
        if not meant:
            kinds = sorted({type(module).__name__ for module in modules.values()})
            near = difflib.get_close_matches(str(given), [*modules, *kinds], n=3, cutoff=0.0)
            raise ConfigurationError(
                f"ignored={given!r} fits no module of the network, by name or by type; the nearest are "
                f"{', '.join(near)}"
            )
        found.update(name for name in modules for whole in meant if name == whole or name.startswith(f"{whole}."))
    return found


def _fits(given: str | type, name: str, module: nn.Module) -> bool:
    if isinstance(given, type):
        return isinstance(module, given)
    return fnmatchcase(name, given) or given in (kind.__name__ for kind in type(module).__mro__)
