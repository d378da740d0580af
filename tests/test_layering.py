"""Imports point strictly down, and are absolute."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("compressors", "env", "agent", "experiments", "plywise")
FILES = [path for layer in LAYERS for path in sorted((ROOT / layer).glob("*.py"))]


def imported(path):
    """Returns the names that a file imports and the level of each import, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module or ''}.{alias.name}", node.level) for alias in node.names)


def broken_rules(path, layer):
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    for name, level in imported(path):
        first, *rest = name.split(".")
        if level:
            yield f"relative import of {name}"
        elif first in LAYERS and first != "plywise":
            yield f"{name} lacks the prefix plywise"
        elif first == "plywise" and layer != "plywise" and (not rest or rest[0] not in allowed):
            yield f"{name} is above {layer}"


def test_there_are_files_in_every_layer():
    assert {path.parent.name for path in FILES} == set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_point_down(path):
    assert list(broken_rules(path, path.parent.name)) == []


@pytest.mark.parametrize(
    ("text", "layer"),
    [
        ("from plywise.env.network import Network", "compressors"),
        ("import plywise.agent", "env"),
        ("def f():\n    from plywise import compress", "agent"),
        ("from plywise import __version__", "experiments"),
        ("from . import errors", "compressors"),
        ("from .errors import DataError", "plywise"),
        ("from env.network import Network", "agent"),
    ],
)
def test_the_rule_can_fail(tmp_path, text, layer):
    (tmp_path / "file.py").write_text(text)
    assert len(list(broken_rules(tmp_path / "file.py", layer))) == 1
