"""A row of the study of other people's networks, and the page that is made of rows."""

import sys

import pytest
import torch
from torch import nn

from plywise.compressors.errors import DataError
from plywise.experiments.breadth import breadth_row, breadth_study
from plywise.experiments.breadth.architectures import ARCHITECTURES, Architecture
from plywise.experiments.breadth.breadth_row import counted, row_of
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
    assert row["others_cut"] == 1.0
    assert sum(row["chosen"].values()) >= 2
    assert row["uncut"] == {"its channels are the network's outputs": 1}


@pytest.mark.parametrize(
    ("reader", "told"),
    [("load_packed", "the packed file gives other outputs"), ("running_model", "ONNX Runtime gives")],
)
def test_a_file_with_other_outputs_is_told(reader, told, monkeypatch):
    monkeypatch.setattr(breadth_row, reader, lambda *_: small().float().eval())
    row = row_of(Architecture("here", small, images), "small", torch_pruning=False)
    assert row["problem"].startswith(told)


def test_what_fails_is_told_in_the_row():
    row = row_of(Architecture("here", small, lambda count: torch.zeros(count, 5)), "small", torch_pruning=False)
    assert row["problem"].startswith("ModelError: the network does not run on a batch")


def test_the_page_counts_what_passes(row):
    failed = {**row, "reached": 0.8, "problem": "it fails", "difference": float("nan"), "skipped": {"a reason": 3}}
    text = page_of({"unet": row, "bert": failed, "gpt2": {"problem": "killed"}})
    assert "1 of 3 networks pass" in text
    assert "90.0% of the parameters in the mean, less than the 95%" in text
    assert "| gpt2 | transformers |" in text
    assert "| it fails |" in text
    assert "| bert | 3 | a reason |" in text
    assert "nan" not in text.replace("mean", "")


def test_the_page_stands_where_nothing_ran():
    assert "0 of 1 networks pass" in page_of({"gpt2": {"problem": "transformers is not installed"}})


def page_of(rows):
    page = Page("breadth_study", "command", 0.0)
    breadth_study.write(page, rows)
    return "\n".join(page.markdown)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("shares channels with head (Linear)", "shares channels with ... (Linear)"),
        ("shares channels with body.0.fc (Linear)", "shares channels with ... (Linear)"),
        (
            "has the weight of 'head' and becomes what that becomes",
            "has the weight of ... and becomes what that becomes",
        ),
        ("head has the same weight", "... has the same weight"),
        ("scales its vectors while it runs (max_norm)", "scales its vectors while it runs (max_norm)"),
        ("LayerNorm: no technique for this kind of layer", "LayerNorm: no technique for this kind of layer"),
    ],
)
def test_reasons_are_counted_whatever_layers_they_name(reason, told):
    assert counted([reason, reason]) == {told: 2}


def test_shares_count_a_tied_weight_once():
    tied = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 50, bias=False))
    tied[1].weight = tied[0].weight
    row = row_of(Architecture("here", lambda: tied, lambda count: torch.arange(4 * count).reshape(count, 4)), "tied")
    assert row["problem"] == ""
    assert row["reached"] == 1.0
    assert row["others_cut"] is None or row["others_cut"] <= 1.0


def test_there_are_thirty_architectures_and_their_batches_fit():
    assert len(ARCHITECTURES) >= 30
    for name, architecture in ARCHITECTURES.items():
        if architecture.source == "plywise":
            with torch.no_grad():
                assert architecture.build().eval()(architecture.batch(2)) is not None, name


def test_a_process_that_is_killed_is_told_and_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(breadth_study, "cache_folder", lambda _: tmp_path)
    monkeypatch.setattr(breadth_study.sys, "executable", "/bin/false")
    assert breadth_study.row("unet")["problem"].startswith("the process ended with 1")
    monkeypatch.setattr(breadth_study, "alone", lambda name: {"problem": "", "parameters": 3})
    assert breadth_study.row("unet")["parameters"] == 3
    monkeypatch.setattr(breadth_study, "alone", None)
    assert breadth_study.row("unet")["parameters"] == 3


def test_a_row_is_found_again_once_a_package_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(breadth_study, "cache_folder", lambda _: tmp_path)
    for version in ({}, {"timm": "1.0"}):
        monkeypatch.setattr(breadth_study, "versions", lambda version=version: version)
        monkeypatch.setattr(breadth_study, "alone", lambda name, version=version: {"problem": str(version)})
        assert breadth_study.row("vit_tiny")["problem"] == str(version)


@pytest.mark.parametrize("name", ["resnet18", "gpt2"])
def test_architectures_of_others_say_what_to_install(name, monkeypatch):
    for package in ("torchvision", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=r"is not installed: pip install 'plywise\[breadth\]'"):
        ARCHITECTURES[name].build()
