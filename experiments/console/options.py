"""Options on the command line: how they are shown, and what is said about those that are wrong."""

import difflib
import re
from argparse import HelpFormatter
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from plywise.experiments.console.mistakes import fail

KINDS = {"int": "a whole number", "float": "a number", "NoneType": "null", "str": "a text"}
"""How to call the parser's types."""


class OptionParser(ArgumentParser):
    """Shows options with hyphens, and tells a mistake in one message instead of the usage of everything."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        """Takes what its base takes; options must be spelled out, for what is short today may mean two tomorrow."""
        super().__init__(*args, allow_abbrev=False, **settings)

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Returns the help page."""
        return _hyphened(super().format_help(formatter))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends with one message and exit code 2."""
        parser = getattr(ex, "subcommand_parser", None) or self
        known = [option for action in parser._actions for option in action.option_strings]
        command = parser.prog.replace(" [options]", "")
        missing = re.match(r"the following arguments are required: (\w+)\.", message)
        if missing:
            command += f" {missing[1]}"
        fail(f"{_hyphened(_reworded(message, known))} ('{command} --help' explains all options)")


def _reworded(message: str, known: list[str]) -> str:
    """Returns what the parser says, without its own terms."""
    missing = re.match(r"the following arguments are required: (.*)", message)
    if missing:
        names = (name.rpartition(".")[2] for name in missing[1].split(", "))
        return f"missing: {', '.join(f'--{name}' for name in names)}"
    command = re.match(r"argument subcommand: invalid choice: '(.*?)' \(choose from (.*)\)", message)
    if command:
        return f"unknown command {command[1]}.{_nearest(command[1], re.findall(r'[a-z]+', command[2]))}"
    unknown = re.match(r"unrecognized arguments: ([^\s=]+)", message)
    if unknown:
        return f"unknown option {unknown[1]}.{_nearest(unknown[1], known)}"
    wrong = re.match(r'Parser key "(?:\w+\.)?(\w+)":', message)
    if wrong:
        given = re.findall(r"(?:Got|Given) value: ([^\n]*)", message)[-1:]  # the last one is as it was typed
        kinds = dict.fromkeys(re.findall(r"Expected an? <class '(\w+)'>", message))
        allowed = " or ".join(KINDS.get(kind, kind) for kind in kinds)
        return f"--{wrong[1]} takes {allowed or 'another kind of value'}, not {''.join(given)!r}"
    return message


def _nearest(given: str, known: list[str]) -> str:
    near = difflib.get_close_matches(given, known, n=3)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _hyphened(text: str) -> str:
    return re.sub(r"--\w+", lambda option: option[0].replace("_", "-"), text)
