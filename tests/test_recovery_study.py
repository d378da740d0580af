"""The study of fine-tuning: a run is paid for once, and the page says what was won."""

import dataclasses

import pytest
import torch
from made_up_device import FakeLatency
from torch import nn

from plywise.env.recovery.recovery_settings import RecoverySettings
from plywise.env.subject import Subject
from plywise.experiments.commands.study import Study, samples
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.studies import recovery_study
from plywise.experiments.studies.recovery_study import CASES, Won, trained
from plywise.experiments.workbench.results_page import Page


def test_a_run_that_is_known_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path / "cache"))
    dataset = load_dataset("digits")
    dataset = dataclasses.replace(dataset, train=dataset.train.select(torch.arange(100)))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()
    subject = Subject(model, samples(dataset.train), samples(dataset.validation), "tiny", FakeLatency())
    studied, settings = Study(subject, samples(dataset.test)), RecoverySettings(epochs=2)
    found = trained(studied, dataset, "2 bits", settings, tmp_path / "runs")
    assert len(found.accuracies) == 3
    assert found.seconds > 0
    assert {path.name.partition("-")[0] for path in (tmp_path / "runs").iterdir()} == {"figures.sqlite"}  # no state
    monkeypatch.setattr(recovery_study, "recover", lambda *_: pytest.fail("trained again"))
    assert trained(studied, dataset, "2 bits", settings, tmp_path / "runs") == found


def test_the_page_has_each_seed_and_what_was_won_on_average():
    rows = {}
    for seed, gain in ((0, 1.0), (1, 2.0)):
        for name in CASES:
            for mode in ("finetune", "distill"):
                rows[name, mode, seed] = Won(80.0, 80.0 + gain, [90.0, 91.5], 12.0)
    page = Page("study", "command", 0.0)
    del rows["2 bits", "finetune", 1]
    recovery_study._tables(page, rows, epochs=1)
    accuracies, validation = (part for part in page.markdown if part.startswith("| plan"))
    assert "| 2 bits: distill | 80.00 | 81.00 | 82.00 | +1.50 | 12 |" in accuracies
    assert "| 2 bits: finetune | 80.00 | 81.00 | not run | +1.00 | 12 |" in accuracies
    assert accuracies.count("\n") == 1 + 2 * len(CASES)
    assert "| half the inner channels: finetune, seed 1 | 90.00 | 91.50 |" in validation
