"""Whatever changes a figure changes its key: code, what it imports, and the techniques of others; words do not."""

import importlib
import sys

import pytest

from plywise.env import subject_key
from plywise.env.storage import code_digest as digests
from plywise.env.storage.code_digest import code_digest

FILES = {
    "__init__.py": '"""A package."""\n',
    "figure.py": "from some_package.inner import rule\n\n\ndef figure():\n    return rule.twice(3)\n",
    "inner/__init__.py": "",
    "inner/rule.py": "FACTOR = 2\n\n\ndef twice(x):\n    return FACTOR * x\n",
    "inner/other.py": "UNUSED = 1\n",
}


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """Returns a function that digests a package as it is after a change of one of its files."""
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in FILES.items():
        path = tmp_path / "some_package" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)

    def find(name=None, text="", roots=("some_package.figure",)):
        for cached in (code_digest, digests._file, digests._parsed):
            cached.cache_clear()
        importlib.invalidate_caches()
        if name is not None:
            (tmp_path / "some_package" / name).write_text(text)
        return code_digest(*roots)

    yield find
    for name in [name for name in sys.modules if name.startswith("some_package")]:
        del sys.modules[name]
    for cached in (code_digest, digests._file, digests._parsed):
        cached.cache_clear()


def test_it_is_the_same_for_the_same(digest):
    assert digest() == digest()


def test_what_is_imported_counts_and_the_rest_does_not(digest):
    before = digest()
    assert digest("inner/other.py", "UNUSED = 2\n") == before
    assert digest("inner/rule.py", FILES["inner/rule.py"].replace("2", "3")) != before
    assert digest("inner/rule.py", FILES["inner/rule.py"]) == before
    assert digest("figure.py", FILES["figure.py"].replace("(3)", "(4)")) != before


def test_words_and_layout_do_not_count(digest):
    before = digest()
    constant = '"""Other words."""\n\nFACTOR = 2  # why\n"""What it is."""\n'
    function = 'def twice(\n    x\n):\n    """Doubles."""\n    return FACTOR * x\n'
    assert digest("inner/rule.py", constant + function) == before


def test_a_package_stands_for_all_of_its_files(digest):
    roots = ("some_package",)
    before = digest(roots=roots)
    assert digest("inner/other.py", "UNUSED = 2\n", roots) != before
    assert digest("inner/new.py", "", roots) != before


def test_the_libraries_count(digest, monkeypatch):
    before = digest()
    monkeypatch.setattr(digests.metadata, "version", lambda name: "0.0")
    assert digest() != before


def test_a_subject_rests_on_what_finds_its_figures_and_on_nothing_above():
    reached = set(digests._reached(subject_key.CODE))
    assert {
        "plywise.compressors.structure.low_rank",  # found by its folder
        "plywise.env.bank.repair",
        "plywise.env.costs.energy",
        "plywise.env.prices.sensitivity",
        "plywise.env.runtime.operation_graph",
    } <= reached
    above = ("plywise.env.walk", "plywise.env.recovery", "plywise.agent", "plywise.experiments")
    assert not [name for name in reached if name.startswith(above)]
