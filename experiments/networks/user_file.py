"""Importing a user's file as Python would run it, without it getting into the way of other modules."""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from plywise.compressors.errors import ModelError


def import_file(path: Path) -> ModuleType:
    """Runs a file and returns it as a module, which may import what lies next to it.

    Its name is made of its path, so that files of one name, and of that of an installed package, are told apart.

    Raises:
        ModelError: if it does not exist, or a file next to it, which it imports, has the name of another module.
        Exception: whatever the file raises.
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ModelError(f"{path} does not exist; write 'path/to/file.py:factory'")
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    _check_neighbours(path)
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _check_neighbours(path: Path) -> None:
    """Raises ModelError where a file next to a user's, which it imports, is not what its name stands for."""
    for name in _imported(path):
        beside = [path.parent / f"{name}.py", path.parent / name / "__init__.py"]
        mine = next((file for file in beside if file.is_file()), None)
        found = None if mine is None else _origin(name)
        if mine is not None and found != mine:
            other = f"{name!r} of Python itself" if found is None else str(found)
            raise ModelError(
                f"two modules claim the name {name!r}: {mine}, which {path} imports, and {other}; rename yours"
            )


def _imported(path: Path) -> Iterator[str]:
    """Yields the top-level names of the modules that a file imports; none where it is no Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # it is told when the file runs
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name.partition(".")[0] for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def _origin(name: str) -> Path | None:
    """Returns the file that a name stands for; None for a module that is built into Python or given by a script."""
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
        return None if file is None else Path(file).resolve()
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin in (None, "built-in", "frozen") else Path(str(spec.origin)).resolve()
