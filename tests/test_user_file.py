"""Users' files: what they may import, and what is told apart."""

import sys

import pytest

from plywise.compressors.errors import ModelError
from plywise.experiments.networks.user_file import import_file


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Paths and modules are taken back after each test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        del sys.modules[name]


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_a_file_imports_what_lies_next_to_it(tmp_path) -> None:
    folder = write(tmp_path, network="from my_own_parts import WIDTH\n", my_own_parts="WIDTH = 7\n")
    assert import_file(folder / "network.py").WIDTH == 7


def test_files_of_one_name_are_told_apart(tmp_path) -> None:
    one, two = (write(tmp_path / side, network=f"SIDE = {side!r}\n") for side in ("left", "right"))
    first, second = import_file(one / "network.py"), import_file(two / "network.py")
    assert (first.SIDE, second.SIDE) == ("left", "right")
    assert first.__name__ != second.__name__


def test_a_file_may_have_the_name_of_a_package(tmp_path) -> None:
    numpy = sys.modules["numpy"]
    assert import_file(write(tmp_path, numpy="HERE = True\n") / "numpy.py").HERE
    assert sys.modules["numpy"] is numpy


def test_data_classes_with_annotations_as_text_are_fine(tmp_path) -> None:
    lines = "from __future__ import annotations", "from dataclasses import dataclass"
    text = "\n".join([*lines, "@dataclass", "class Sizes:", "    width: int"])
    assert import_file(write(tmp_path, network=text) / "network.py").Sizes(3).width == 3


@pytest.mark.parametrize("name", ["json", "numpy", "sys"])
def test_two_modules_of_one_name_are_told(tmp_path, name) -> None:
    folder = write(tmp_path, network=f"def make():\n    import {name}\n", **{name: "WIDTH = 7\n"})
    with pytest.raises(
        ModelError, match=rf"two modules claim the name '{name}': .*{name}\.py, which .*network\.py imports"
    ):
        import_file(folder / "network.py")


def test_the_second_of_two_neighbours_of_one_name_is_told(tmp_path) -> None:
    one, two = (write(tmp_path / side, network="import my_own_parts\n", my_own_parts="") for side in ("left", "right"))
    import_file(one / "network.py")
    with pytest.raises(ModelError, match=r"two modules claim the name 'my_own_parts'.*right.*left"):
        import_file(two / "network.py")


def test_a_file_that_fails_leaves_nothing_behind(tmp_path) -> None:
    before = set(sys.modules)
    with pytest.raises(ZeroDivisionError):
        import_file(write(tmp_path, network="1 / 0\n") / "network.py")
    assert set(sys.modules) == before
    with pytest.raises(ModelError, match="does not exist"):
        import_file(tmp_path / "absent.py")
