"""Tensors with a header: every bit comes back, and no file that lacks one is used."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from plywise.compressors.errors import FileFormatError
from plywise.compressors.tensor_file import TensorFile

ARRAYS = TensorFile("things/1", "make it again")
TENSORS = TensorFile("things/1", "make it again", "torch")
HEADER = {"name": "x", "numbers": [1, 2.5, None], "inner": {"é": True}}


def test_arrays_come_back(tmp_path):
    values = {"a": np.arange(6, dtype=np.uint32).reshape(2, 3).T, "mask": np.array([True, False]), "none": np.zeros(0)}
    ARRAYS.write(tmp_path / "file", values, HEADER)
    found, header = ARRAYS.read(tmp_path / "file")
    assert header == HEADER
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == value.dtype
        assert np.array_equal(found[name], value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_tensors_come_back_and_others_can_read_the_file(tmp_path):
    values = {"a": torch.rand(3, 2).T, "short": torch.rand(4).bfloat16(), "count": torch.tensor(3)}
    TENSORS.write(tmp_path / "file", values, HEADER)
    found, header = TENSORS.read(tmp_path / "file")
    assert header == HEADER
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in values.items())
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert torch.equal(file.get_tensor("a"), values["a"])
        assert json.loads(file.metadata()["plywise"])["header"] == HEADER


def test_the_same_makes_the_same_bytes():
    values = {name: np.arange(3.0) for name in "abcdefgh"}
    assert len({ARRAYS.content(values, HEADER) for _ in range(20)}) == 1


@pytest.mark.parametrize("library", [ARRAYS, TENSORS])
def test_any_damage_is_told(tmp_path, library):
    values = {"a": np.arange(3.0)} if library is ARRAYS else {"a": torch.arange(3.0)}
    path = tmp_path / "file"
    content = library.content(values, {"n": 1})
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(FileFormatError, match="make it again"):
            library.read(path)
    for kept in range(len(content)):
        path.write_bytes(content[:kept])
        with pytest.raises(FileFormatError, match=r"is damaged .* make it again"):
            library.read(path)


def test_hostile_headers_are_told(tmp_path):
    path = tmp_path / "file"
    for text in (b"[" * 100_000, b"[]", b'{"__metadata__": 3}', b'{"__metadata__": {"plywise": "[1]"}}', b"\xff\xfe"):
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(FileFormatError, match="make it again"):
            ARRAYS.read(path)
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(FileFormatError, match="make it again"):
        ARRAYS.read(path)


def test_other_kinds_and_missing_files_are_told(tmp_path):
    TensorFile("things/2", "").write(tmp_path / "file", {"a": np.zeros(1)}, {})
    with pytest.raises(FileFormatError, match=r"file holds things/2, not things/1; make it again"):
        ARRAYS.read(tmp_path / "file")
    with pytest.raises(FileFormatError, match=r"nothing is missing; make it again"):
        ARRAYS.read(tmp_path / "nothing")
    with pytest.raises(FileFormatError, match="cannot be read"):
        ARRAYS.read(tmp_path)
