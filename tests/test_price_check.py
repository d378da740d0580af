"""What a price table takes and how well it predicts bytes: made from nothing, and nothing left behind."""

import os

import torch
from torch import nn

from plywise.agent.search.random_search import RandomSearch
from plywise.env.score.demand import Demand
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.studies.price_check import PriceCheck, fresh_cache


def test_a_table_made_from_nothing_foretells_bytes_and_says_what_it_took():
    dataset = load_dataset("digits")
    pixels = dataset.train.inputs()[0].numel()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
    with fresh_cache():
        check = PriceCheck("tiny", network, dataset)
        errors = check.storage_errors(6)
        runs = [check.search(RandomSearch(), Demand(1.0), 9, early) for early in (True, False)]
    assert len(check.equivalents) == 4
    assert all(taken > 0 for taken in check.equivalents.values())
    assert errors.shape == (6, 2)
    assert (errors[:, 0] > errors[:, 1]).all()
    assert abs(errors).max() < 0.05
    assert all(seconds > 0 and result.evaluations == 9 for seconds, _, result in runs)
    assert [stopped > 0 for _, stopped, _ in runs] == [True, False]  # by its costs, for it is untrained
    assert runs[0][2].actions == runs[1][2].actions


def test_the_usual_cache_is_back_after_a_fresh_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path))
    with fresh_cache():
        assert os.environ["PLYWISE_CACHE"] != str(tmp_path)
    assert os.environ["PLYWISE_CACHE"] == str(tmp_path)
    monkeypatch.delenv("PLYWISE_CACHE")
    with fresh_cache():
        assert "PLYWISE_CACHE" in os.environ
    assert "PLYWISE_CACHE" not in os.environ
