"""A hash of what a user's function does, as far as Python tells, for what is kept between runs."""

import hashlib
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor

PLAIN = (int, float, str, bytes, bool, type(None))


def function_digest(function: Callable[..., Any]) -> str:
    """Returns a hash of a function's code, its defaults and what it captures; of an object, of its call and its state.

    What it calls in turn is not looked into.
    """
    state = hashlib.sha256()
    for piece in _pieces(function):
        state.update(piece)
    return state.hexdigest()[:16]


def _pieces(function: Any) -> Iterator[bytes]:
    inner = getattr(function, "func", None)
    if inner is not None and hasattr(function, "keywords"):  # functools.partial
        yield from _pieces(inner)
        yield from _values([*function.args, *function.keywords.items()])
        return
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None:
        yield type(function).__qualname__.encode()
        called = vars(type(function)).get("__call__")
        if isinstance(called, FunctionType):
            yield from _code(called.__code__)
        yield from _values(list(getattr(function, "__dict__", {}).items()))
        return
    yield from _code(code)
    yield from _values(list(function.__defaults__ or ()))
    yield from _values([cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)])


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _code(code: CodeType) -> Iterator[bytes]:
    yield code.co_code
    yield repr(code.co_names).encode()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant)
        else:
            yield repr(constant).encode()


def _values(values: list[Any]) -> Iterator[bytes]:
    for value in values:
        if isinstance(value, PLAIN):
            yield repr(value).encode()
        elif isinstance(value, Tensor):
            yield f"{tuple(value.shape)}{value.detach().double().sum().item()!r}".encode()
        elif isinstance(value, list | tuple):
            yield from _values(list(value))
        else:
            yield type(value).__qualname__.encode()
