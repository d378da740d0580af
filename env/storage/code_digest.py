"""The one policy of what kept figures rest on: whatever changes a figure changes the key that it is kept under.

A key names the inputs of a figure by what is in them (weights, samples, settings, the device), and the code that finds
it by `code_digest` of the modules that do. So no number has to be raised by hand where code changes:

- Prices, probes, trials, scored plans and compressed layers go when anything changes that `plywise.env.subject`
  imports, directly or through others, any file of `plywise.compressors`, or the module of a technique of another
  package. The environment, the agent, fine-tuning and scripts may change.
- Trained networks of the zoo go with the network's module, the training loop, and what those import.
- Figures of studies go with anything in `plywise.compressors` and `plywise.env`.
- Latencies stay: they are kept under the fingerprint of the device and its runtime, in a table with a version.

Comments, docstrings and layout may change: what is digested is the parsed code without them. The versions of the
libraries that compute are in it too. That an edit of one technique takes away the figures of all others costs minutes
to whoever works on Plywise; a figure that rests on old code costs more.
"""

import ast
import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

LIBRARIES = ("torch", "numpy", "torch-pruning")


@cache
def code_digest(*roots: str) -> str:
    """Returns what changes with the code of modules and of all that they import from their own top-level packages.

    Args:
        roots: names of modules; that of a package stands for all files in it.
    """
    digest = hashlib.sha256()
    for library in LIBRARIES:
        digest.update(f"{library} {metadata.version(library)}\n".encode())
    for name, path in sorted(_reached(roots).items()):
        digest.update(f"{name} {_parsed(path)[0]}\n".encode())
    return digest.hexdigest()


def _reached(roots: tuple[str, ...]) -> dict[str, Path]:
    """Returns the files of the roots and of everything that they import, by name of the module."""
    tops = {root.partition(".")[0] for root in roots}
    waiting, found = [name for root in roots for name in _inside(root)], dict[str, Path]()
    while waiting:
        name = waiting.pop()
        path = None if name in found or name.partition(".")[0] not in tops else _file(name)
        if path is not None:
            found[name] = path
            waiting += _parsed(path)[1]
    return found


def _inside(root: str) -> Iterator[str]:
    """Yields a module, and all modules below it where it is a package."""
    yield root
    path = _file(root)
    if path is not None and path.name == "__init__.py":
        for file in path.parent.rglob("*.py"):
            yield ".".join((root, *file.relative_to(path.parent).with_suffix("").parts)).removesuffix(".__init__")


@cache
def _file(name: str) -> Path | None:
    """Returns the source of a module; None where the name is of something else, or there is none."""
    top, *rest = name.split(".")
    module = sys.modules.get(top) or import_module(top)
    source = module.__file__
    if source is None or not Path(source).exists():  # of a namespace, or in an archive
        return None
    if not rest:
        return Path(source)
    place = Path(source).parent.joinpath(*rest)
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


@cache
def _parsed(path: Path) -> tuple[str, tuple[str, ...]]:
    """Returns a digest of the code in a file, and the names that it may import."""
    if path.suffix != ".py":  # compiled: all that can be known is whether it is the same
        return hashlib.sha256(path.read_bytes()).hexdigest(), ()
    tree = ast.parse(path.read_bytes())
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        if isinstance(getattr(node, "body", None), list):
            node.body = [part for part in node.body if not _is_text(part)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(names)


def _is_text(statement: ast.stmt) -> bool:
    """Whether a statement is nothing but a text: a docstring, or what is said below a constant."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
