"""README and docs: links lead somewhere, Python is valid, commands are spelled as the program takes them."""

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from plywise.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST_LINES = 220
"""Of the README."""

RENAMED = {"from": "front"}
"""Options that are no names in Python."""


def blocks(page: Path, language: str) -> list[str]:
    """Returns the blocks of code of a language; of none where it is empty."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def commands() -> Iterator[tuple[str, str]]:
    """Yields every command of ours with the page that it stands on."""
    for page in PAGES:
        for block in blocks(page, ""):
            for line in block.splitlines():
                words = line.partition("#")[0].strip()
                if words.startswith("plywise "):
                    yield page.name, words


def test_the_readme_is_short() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_is_valid(page) -> None:
    for block in blocks(page, "python"):
        compile(inspect.cleandoc(block), str(page), "exec")


def test_every_page_is_reached_from_the_readme() -> None:
    text = PAGES[0].read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"docs/{page.name}" not in text] == []


def test_there_are_commands() -> None:
    shown = {words.split()[1] for _, words in commands()}
    assert {"train", "compress", "pareto", "compare", "evaluate", "profile", "init", "list"} <= shown


@pytest.mark.parametrize(("page", "words"), list(commands()))
def test_commands_and_options_exist(page, words) -> None:
    _, command, *arguments = shlex.split(words)
    known = set(inspect.signature(COMMANDS[command]).parameters)
    options = [each.removeprefix("--").replace("-", "_") for each in arguments if each.startswith("--")]
    assert {RENAMED.get(option, option) for option in options} <= known
