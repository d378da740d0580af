"""Cached files with a flipped bit: none is believed, and what was in them is made again, with a note."""

import sqlite3
import warnings
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from plywise.compressors.errors import FileFormatError
from plywise.env.costs import latency
from plywise.env.costs.latency import LatencyTable
from plywise.env.prices.price_file import load_prices, save_prices
from plywise.env.storage.cache import CacheDamageWarning
from plywise.env.storage.result_store import ResultStore
from plywise.env.storage.sqlite_file import SET_ASIDE
from plywise.env.walk.synthetic import synthetic_table
from plywise.experiments.data.cached_tensors import read_tensors, write_tensors
from plywise.experiments.networks import zoo
from plywise.experiments.networks.training import TrainingSettings

KEYS = {f"network/probe/{number}": {"nats": number / 7.0} for number in range(40)}


def flipped(content, places):
    """Yields copies of a file's content with one bit turned in each."""
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << int(place) % 8
        yield bytes(changed)


def some_places(content, count=60):
    return np.random.default_rng(0).choice(len(content), count, replace=False)


def test_every_bit_of_cached_tensors_counts(tmp_path):
    path = tmp_path / "some.safetensors"
    tensors = {"weight": torch.arange(6.0).view(2, 3), "half": torch.ones(3).bfloat16(), "one": torch.tensor(True)}
    write_tensors(path, tensors)
    content = path.read_bytes()
    for changed in flipped(content, range(len(content))):
        path.write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheDamageWarning)
            found = read_tensors(path)
        assert found is None or all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_damaged_weights_of_the_zoo_are_trained_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path))
    quick = replace(zoo.ZOO["digits-mlp"], training=TrainingSettings(epochs=1))
    monkeypatch.setitem(zoo.ZOO, "digits-mlp", quick)
    before = zoo.trained("digits-mlp").state_dict()
    (file,) = (tmp_path / "zoo").iterdir()
    content = bytearray(file.read_bytes())
    content[-1000] ^= 64
    file.write_bytes(content)
    with pytest.warns(CacheDamageWarning, match="made again: .*digits-mlp"):
        after = zoo.trained("digits-mlp").state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_every_bit_of_a_price_table_counts(tmp_path):
    path = tmp_path / "prices"
    save_prices(synthetic_table(np.random.default_rng(0), 3, 4), path)
    content = path.read_bytes()
    for changed in flipped(content, some_places(content, 200)):
        path.write_bytes(changed)
        with pytest.raises(FileFormatError, match="delete it to price again"):
            load_prices(path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "results.sqlite"
    store = ResultStore(path)
    for key, value in KEYS.items():
        store.put(key, value)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes()


def test_figures_in_a_damaged_file_are_right_or_missing(kept, tmp_path):
    missing = 0
    for number, changed in enumerate(flipped(kept, [*range(0, 100, 9), *some_places(kept)])):
        path = tmp_path / f"{number}.sqlite"
        path.write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheDamageWarning)
            store = ResultStore(path)
            found = {key: store.get(key) for key in list(KEYS)[::5]}
            store.put("later", number)
            assert store.get("later") == number
        assert all(value is None or value == KEYS[key] for key, value in found.items())
        missing += None in found.values()
    assert missing > 0


def test_a_damaged_figure_is_told(kept, tmp_path):
    path = tmp_path / "results.sqlite"
    path.write_bytes(kept.replace(b'{"nats": 0.0}', b'{"nats": 8.0}'))
    with pytest.warns(CacheDamageWarning, match=r"a figure in .*results\.sqlite"):
        assert ResultStore(path).get("network/probe/0") is None
    assert ResultStore(path).get("network/probe/1") == KEYS["network/probe/1"]


def test_a_file_that_cannot_be_read_is_kept_and_begun_anew(tmp_path):
    path = tmp_path / "results.sqlite"
    path.write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.warns(CacheDamageWarning, match="kept as results.sqlite.damaged"):
        store = ResultStore(path)
    store.put("a", 1)
    assert store.get("a") == 1
    assert path.with_name(path.name + SET_ASIDE).read_bytes().startswith(b"not a database")


def test_a_damaged_latency_is_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "_time_chain", lambda *_: (0.5, 0.0))
    path = tmp_path / "latency.sqlite"
    LatencyTable(path).milliseconds([latency.REFERENCE], progress=False)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"UPDATE {latency.TABLE} SET milliseconds = 4096.5 WHERE chain != '[]'")
    with pytest.warns(CacheDamageWarning, match="a latency in"):
        LatencyTable(path).milliseconds([latency.REFERENCE], progress=False)
    with closing(sqlite3.connect(path)) as connection:
        assert {row for (row,) in connection.execute(f"SELECT milliseconds FROM {latency.TABLE}")} == {0.5}
