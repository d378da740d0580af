"""The written form of a recipe: `filter_pruning(ratio=0.5) + uniform_quantization(bits=4)`."""

import ast
from collections.abc import Mapping
from typing import Any

from plywise.compressors.errors import ConfigurationError

IDENTITY = "identity"
LONGEST = 2000
"""The characters of a written recipe, at most."""


def parse_recipe(text: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns name and settings of each technique as written; none for `identity`. Executes nothing.

    Raises:
        ConfigurationError: if the text has another fmt. Whether such techniques exist is not looked at.
    """
    if not isinstance(text, str):
        raise ConfigurationError(
            f"{text!r} is a {type(text).__name__} and no recipe; write for example 'low_rank(ratio=0.5)'"
        )
    if len(text) > LONGEST:
        raise ConfigurationError(f"a text of {len(text)} characters is not a recipe; at most {LONGEST} are read")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigurationError(f"{text!r} is not a recipe; write for example 'low_rank(ratio=0.5)'") from error
    return [parsed for node in _terms(tree) if (parsed := _technique(node, text)) is not None]


def _terms(node: ast.expr) -> list[ast.expr]:
    terms: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        terms.append(node.right)
        node = node.left
    return [node, *reversed(terms)]


def _technique(node: ast.expr, text: str) -> tuple[str, Mapping[str, Any]] | None:
    if isinstance(node, ast.Name):
        return None if node.id == IDENTITY else (node.id, {})
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ConfigurationError(f"{text!r} is not a recipe; write for example 'low_rank(ratio=0.5)'")
    settings: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ConfigurationError(f"{text!r} is not a recipe: name each field, as in 'low_rank(ratio=0.5)'")
        if keyword.arg in settings:
            raise ConfigurationError(f"{text!r} gives {keyword.arg} twice; keep one of them")
        if isinstance(keyword.value, ast.Name):
            settings[keyword.arg] = keyword.value.id
            continue
        try:
            settings[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError as error:
            raise ConfigurationError(f"{text!r}: {keyword.arg} must be a plain number or a word") from error
    return node.func.id, settings
