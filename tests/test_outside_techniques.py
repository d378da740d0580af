"""Techniques from other installed packages: everything that follows from a declaration follows for them too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plywise.compressors.errors import ConfigurationError
from plywise.compressors.recipes.entry_points import load_entry_points
from plywise.compressors.recipes.registry import TECHNIQUES
from plywise.compressors.recipes.technique import techniques

TESTS = Path(__file__).parent

TECHNIQUE = '''
from dataclasses import dataclass
from typing import ClassVar

from plywise.compressors.formats.scale_search import best_uniform_format
from plywise.compressors.recipes.hyperparameter import choice
from plywise.compressors.quantization.weight_quantizer import WeightQuantizer


@dataclass(frozen=True)
class OneBit(WeightQuantizer):
    """Rounds weights to a uniform grid of 1 bit."""

    name: ClassVar[str] = "one_bit"
    summary: ClassVar[str] = "smaller files"
    source: ClassVar[str] = "made up, 2026"
    in_search: ClassVar[tuple[str, ...]] = ("one_bit", "low_rank(ratio=0.4) + one_bit(rounding=nearest)")

    rounding: str = choice("gptq", grid=("gptq", "nearest"), help="with error feedback or each weight alone")

    @property
    def bits(self):
        return 1

    def format_of(self, weight, importance):
        return best_uniform_format(weight.float().flatten(1), importance, 1, True, "mse")
'''


def install(folder, code, name="onebit"):
    """Lays out an installed package with one technique."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[plywise.techniques]\none_bit = {name}:OneBit\n")


def python(folder, code):
    path = os.pathsep.join([str(folder), str(TESTS), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "PLYWISE_CACHE": str(folder / "cache"), "COLUMNS": "100"}
    command = (sys.executable, "-W", "error", "-c", code)
    return subprocess.run(command, cwd=TESTS.parent, env=env, capture_output=True, text=True, check=False, timeout=300)


EVERYTHING = f"""
import sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from plywise.compressors.recipes.registry import TECHNIQUES
assert "one_bit" not in TECHNIQUES, "imported before it is needed"

from plywise.__main__ import main
main(["list", "techniques", "one_bit"])

from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
plan = Plan("tiny", {{"conv1": Recipe.parse("low_rank + one_bit(rounding=nearest)")}})
path = Path(sys.path[1]) / "plan.yaml"
plan.save(path)
assert Plan.load(path) == plan

from plywise.env.costs.devices import open_device
from plywise.env.network.menu import catalogue
declared = {{"one_bit", "low_rank(ratio=0.4) + one_bit(rounding=nearest)"}}
assert declared <= set(map(str, catalogue()))

from torch import nn
from tiny_networks import images, labels
from plywise.env.task.samples import labelled
from plywise.env.subject import Subject
latency = open_device("raspberry-pi-4")  # nothing is measured
samples = labelled(images(), labels())
subject = Subject(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), samples, samples, latency=latency)
assert "one_bit" in subject.price().recipes[0], subject.price().recipes

import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", "one_bit", {str(TESTS / "test_techniques.py")!r}]))
"""


def test_listing_plans_search_prices_and_contract_tests_see_it(tmp_path):
    install(tmp_path, TECHNIQUE)
    found = python(tmp_path, EVERYTHING)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    assert "gptq where not given; tried: gptq, nearest" in " ".join(found.stdout.split())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nowhere", "cannot be imported: ModuleNotFoundError: No module named 'nowhere'; fix or uninstall"),
        ("OneBit = 42", "cannot be used: it is not a class below plywise.compressors.recipes.technique.Technique"),
        (TECHNIQUE.replace("    source: ", "    origin: "), "cannot be used: it lacks source"),
        (TECHNIQUE.replace("def format_of", "def formats_of"), "cannot be used: it lacks format_of"),
        (TECHNIQUE.replace("@dataclass(frozen=True)", ""), "cannot be used: it is not a frozen dataclass"),
        (TECHNIQUE.replace('choice("gptq", ', '"gptq" # '), "its field rounding is not declared with choice()"),
        (TECHNIQUE.replace('"one_bit"', '"low_rank"', 1), "'low_rank' of onebit has the name of one of plywise"),
    ],
)
def test_a_broken_one_is_told_with_its_package(tmp_path, monkeypatch, code, said):
    techniques()  # ours are imported, and stay when the patch ends
    install(tmp_path, code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("plywise.compressors.recipes.registry.TECHNIQUES", dict(TECHNIQUES))
    load_entry_points.cache_clear()
    try:
        with pytest.raises(ConfigurationError) as found:
            techniques()
    finally:
        sys.modules.pop("onebit", None)
        load_entry_points.cache_clear()
    assert str(found.value).startswith("technique 'one_bit' of the package onebit (onebit:OneBit) ")
    assert said in str(found.value)
    assert "\n" not in str(found.value)
