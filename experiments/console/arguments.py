"""From the words that people type to those that the parser takes."""

import json
from collections import deque
from collections.abc import Sequence
from itertools import chain

SWITCHES = ("--changes", "--quiet", "--json", "--knee", "--incremental")
"""Options that need no value."""
ONE_BY_ONE = {"compare": "--runs", "plan": "--plan"}
"""Commands that take files or folders one after the other, and the option that holds them."""
NAMED = {"list": ("--what", "--name")}
"""Commands that take words without their options, and these."""
REPEATED = "--plan"
"""May be given several times."""


def parsed_form(words: Sequence[str]) -> list[str]:
    """Returns a command line as the parser takes it: `--max_storage` for `--max-storage`, lists as JSON."""
    given = [_underscored(word) for word in words]
    if not given or {"-h", "--help"} & set(given):
        return given
    command, left = given[0], deque(given[1:])
    pairs: list[tuple[str, str | None]] = []
    free: list[str] = []
    while left:
        name, equals, value = left.popleft().partition("=")
        if not name.startswith("-"):
            free.append(name + equals + value)
        elif equals:
            pairs.append((name, value))
        elif name in SWITCHES:
            pairs.append((name, left.popleft() if left and left[0] in ("true", "false") else "true"))
        else:
            pairs.append((name, left.popleft() if left and not left[0].startswith("--") else None))
    if command in NAMED and len(free) <= len(NAMED[command]):
        pairs += zip(NAMED[command], free, strict=False)
        free = []
    gathered = ONE_BY_ONE.get(command, REPEATED)
    listed = [value for name, value in pairs if name == gathered and value is not None]
    if command in ONE_BY_ONE:
        listed, free = [*free, *listed], []
    one_list = len(listed) == 1 and listed[0].startswith("[")  # as the parser itself takes it
    rest = [(name, value) for name, value in pairs if name != gathered or not listed]
    if listed:
        rest.append((gathered, listed[0] if one_list else json.dumps(listed)))
    return [
        command,
        *free,
        *chain.from_iterable([name] if value is None else [f"{name}={value}"] for name, value in rest),
    ]


def names_in(text: str | None) -> tuple[str, ...]:
    """Returns names that have commas between them."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


def _underscored(word: str) -> str:
    name, equals, value = word.partition("=")
    name = "--front" if name == "--from" else name  # `from` is no name for an argument in Python
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else word
