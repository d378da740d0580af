"""A row of the study of other people's networks, and the page that is made of rows."""

import sys

import pytest
import torch
from torch import nn

from plywise.compressors.errors import DataError
from plywise.experiments.breadth import breadth_study
from plywise.experiments.breadth.architectures import ARCHITECTURES, Architecture
from plywise.experiments.breadth.breadth_row import row_of
from plywise.experiments.workbench.results_page import Page


def small():
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)).bfloat16()


def images(count):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.fixture(scope="module")
def row():
    return row_of(Architecture("here", small, images), "small")


def test_a_network_goes_through_everything(row):
    assert row["problem"] == ""
    assert row["parameters"] == 16 * 27 + 16 + 1024 + 4
    assert (row["reached"], row["cut"]) == (1.0, 1.0)
    assert 0 < row["share"] < 0.5
    assert row["difference"] < 0.05


def test_what_fails_is_told_in_the_row():
    row = row_of(Architecture("here", small, lambda count: torch.zeros(count, 5)), "small", torch_pruning=False)
    assert row["problem"].startswith("ModelError: the network does not run on a batch")


def test_the_page_counts_what_passes(row):
    page = Page("breadth_study", "command", 0.0)
    breadth_study.write(page, {"unet": row, "bert": {**row, "problem": "it fails"}, "gpt2": {"problem": "killed"}})
    text = "\n".join(page.markdown)
    assert "1 of 3 networks pass" in text
    assert "| gpt2 | transformers |" in text
    assert "| it fails |" in text


def test_there_are_thirty_architectures_and_their_batches_fit():
    assert len(ARCHITECTURES) >= 30
    for name, architecture in ARCHITECTURES.items():
        if architecture.source == "plywise":
            with torch.no_grad():
                assert architecture.build().eval()(architecture.batch(2)) is not None, name


def test_a_package_that_is_missing_is_told(monkeypatch):
    monkeypatch.setattr(breadth_study, "kept_run", lambda folder, asked, run: run(folder))
    monkeypatch.setattr(breadth_study.sys, "executable", "/bin/false")
    assert breadth_study.alone("unet")["problem"].startswith("the process ended with 1")


@pytest.mark.parametrize("name", ["resnet18", "gpt2"])
def test_architectures_of_others_say_what_to_install(name, monkeypatch):
    for package in ("torchvision", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=r"is not installed: pip install 'plywise\[breadth\]'"):
        ARCHITECTURES[name].build()
