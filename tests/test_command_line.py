"""The command line, above all what it says when something is wrong: one message, exit code 2, no traceback."""

import dataclasses
import errno
import json
import runpy
import shutil
import sqlite3
import subprocess
import sys
import threading
import warnings
import zipfile
from contextlib import closing, redirect_stderr, suppress
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch_runtime import TorchRuntime

import plywise
from plywise.__main__ import main
from plywise.agent.learning.ppo import PPOSettings
from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.compressors.packing.packed_file import load_packed
from plywise.compressors.recipes.plan import Plan
from plywise.env.bank.repair import make_repair
from plywise.env.costs.latency import LatencyTable, RoughLatencyWarning
from plywise.env.costs.network_latency import Overhead
from plywise.env.execution.executor import NoSetup
from plywise.env.execution.in_process import InProcess
from plywise.env.runtime.runtime import Timing
from plywise.env.runtime.target_program import CPU, Execution
from plywise.env.score.demand import Demand
from plywise.env.storage.result_store import ResultStore
from plywise.env.subject import Subject
from plywise.env.walk.observation import CONTEXT_FEATURES, ROW_FEATURES
from plywise.experiments import compress_model as compress_module
from plywise.experiments import train_agent as train_module
from plywise.experiments.commands import evaluate_files, price_tables
from plywise.experiments.commands.compression_settings import (
    CompressionSettings,
    SearchSettings,
    SourceSettings,
    make_compression,
)
from plywise.experiments.commands.near_chance import near_chance
from plywise.experiments.commands.price_tables import Pricing, price_networks
from plywise.experiments.console.mistakes import telling_mistakes
from plywise.experiments.data.preprocessing import Preprocessing, make_preprocessing
from plywise.experiments.handover import files, handover, measuring
from plywise.experiments.handover.run_folder import alone_in, claimed
from plywise.experiments.handover.running import Running
from plywise.experiments.train_agent import train_agent

FACTORIES = """
import torch
from torch import nn

def make():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(72, 10),
        )

def colour():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10))

def five():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))

def reddish():
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    state = {"0.weight": [[1, 0, 0], [0, 1, 0]], "0.bias": [0, 0], "4.weight": [[1, 0], [0, 0]], "4.bias": [0, 0.2]}
    state = {name: torch.tensor(values, dtype=torch.float32) for name, values in state.items()}
    network.load_state_dict(state | {"0.weight": state["0.weight"][:, :, None, None]})
    return network

def nothing():
    return nn.Sequential(nn.AdaptiveAvgPool2d((1, 10)), nn.Flatten())

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

def broken():
    raise RuntimeError("boom")

answer = 42
"""

PLAN = "plywise: plan/1\nnetwork: tiny\nlayers:\n  '0': {}\n  '2': {}\n  '5': {}\n"
COMPRESS = {"--model": "net.py:make", "--data": "digits", "--out": "out"}
KNAPSACK = {**COMPRESS, "--method": "knapsack"}
FREE = {**KNAPSACK, "--max-accuracy-drop": "null"}
FILES = ["model.onnx", "model.onnx.xz", "plan.yaml", "report.html", "report.json", "weights.safetensors"]


def command(name, options):
    return [name, *(part for option in options.items() for part in option)]


def fake_time(chain, device, reference):
    return 0.01 + sum(0.001 + operation.macs * 3e-8 for operation in chain), 0.0


STAGES = ("/probe/", "/trial/", "/built/")
"""What a run keeps while it prices, while it tries plans and while it searches."""


class Keeping:
    """Notes what the store keeps; presses Ctrl-C after the second of those whose key holds `part`."""

    def __init__(self, patch, part=None):
        self.keys = []
        put = ResultStore.put

        def keep(store, key, value):
            put(store, key, value)
            self.keys.append(key)
            if part is not None and sum(part in each for each in self.keys) == 2:
                raise KeyboardInterrupt

        patch.setattr(ResultStore, "put", keep)


@pytest.fixture(scope="module", autouse=True)
def unwarned():
    """The tiny network is not trained: that it guesses is said in the tests that are about it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plywise.experiments.commands.near_chance.near_chance", lambda *_: False)
        yield


@pytest.fixture
def warned(monkeypatch):
    monkeypatch.setattr("plywise.experiments.commands.near_chance.near_chance", near_chance)


class Prepared:
    """A run that was stopped at every stage and then finished: its folder, and what each attempt did."""

    def __init__(self, home):
        self.home, self.kept, self.said, self.codes, self.folders = home, [], [], [], []
        arguments = command("compress", {**FREE, "--out": "done", "--max-storage": "0.3"})
        for stage in (*STAGES, None):
            with pytest.MonkeyPatch.context() as patch, redirect_stderr(StringIO()) as said:
                attempt = Keeping(patch, stage)
                try:
                    main(arguments)
                    self.codes.append(0)
                except SystemExit as ended:
                    self.codes.append(ended.code)
            self.kept.append(attempt.keys)
            self.said.append(said.getvalue().strip())
            self.folders.append((home / "done").exists())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A cache in which the tiny network is priced already, and one finished run."""
    home = tmp_path_factory.mktemp("home")
    (home / "net.py").write_text(FACTORIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLYWISE_CACHE", str(home / "cache"))
        patch.setattr("plywise.env.costs.latency._time_chain", fake_time)
        patch.setattr("plywise.env.costs.network_latency.NetworkLatency.overhead", Overhead())
        patch.setattr("plywise.env.execution.progress.PATIENCE_SECONDS", 3600.0)  # on a busy machine it would be shown
        patch.chdir(home)
        yield Prepared(home)


@pytest.fixture
def done(prepared):
    """The folder of the finished run."""
    return prepared.home / "done"


@pytest.fixture
def place(prepared, tmp_path, monkeypatch):
    """A folder to work in, with the network's factory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(FACTORIES)
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """Neither exports nor times: for tests that are not about the files."""
    return TorchRuntime(monkeypatch)


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused; returns the message."""

    def run(arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        shown = capsys.readouterr()
        assert ended.value.code == 2
        assert shown.err.startswith("plywise: ")
        assert shown.err.count("\n") <= 4  # a line of a YAML file is shown with its place
        assert "Traceback" not in shown.err
        assert shown.out == ""
        return shown.err

    return run


# What is typed wrongly


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compres"], "unknown command compres. Did you mean compress or compare?"),
        (["compress"], "missing: --out ('plywise compress --help'"),
        ([*command("compress", KNAPSACK), "--evaluations", "x"], "--evaluations takes a whole number, not 'x'"),
        ([*command("compress", KNAPSACK), "--max-storage", "0,15"], "--max-storage takes a number or null, not '0,15'"),
        ([*command("compress", KNAPSACK), "--max-strage", "1"], "unknown option --max-strage. Did you mean --max-stor"),
        (
            [*command("compress", KNAPSACK), "--max-storag", "1"],
            "unknown option --max-storag. Did you mean --max-stora",
        ),
        (["list", "network"], "unknown list 'network'. Did you mean 'networks'"),
        (["--verion"], "unknown option --verion"),
    ],
)
def test_typing_mistakes(refused, arguments, said):
    assert said in refused(arguments)


def test_version_and_help_start_without_torch():
    for option, said in (("--version", plywise.__version__), ("--help", "compress")):
        code = (
            f"import sys; from plywise.__main__ import main\ntry: main([{option!r}])\n"
            "finally: assert 'torch' not in sys.modules"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert found.returncode == 0, found.stderr
        assert said in found.stdout


def test_help_names_options_as_people_type_them(capsys):
    with pytest.raises(SystemExit):
        main(["compress", "--help"])
    shown = capsys.readouterr().out
    assert "--max-accuracy-drop" in shown
    assert "--max_accuracy_drop" not in shown


# Mistakes that are told before anything is computed


@pytest.fixture
def cheap(monkeypatch):
    """Anything expensive is a failure of the test."""

    def forbidden(*_, **__):
        raise AssertionError("too late: something expensive has begun")

    monkeypatch.setattr("plywise.experiments.commands.study.Subject", forbidden)
    monkeypatch.setattr("plywise.experiments.commands.price_tables._executor", forbidden)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "who should look for the plan? Give --agent FOLDER"),
        ({"--method": "ppo"}, "a method that needs no training: --method random, uniform, greedy, knapsack"),
        ({"--method": "knapsak"}, "unknown method 'knapsak'. Did you mean 'knapsack'?"),
        ({"--agent": "nowhere"}, "nowhere is not the folder of a trained agent"),
        ({"--agent": "net.py"}, "net.py is not the folder of a trained agent"),
        ({"--agent": "nowhere", "--method": "greedy"}, "method 'greedy' needs no agent"),
        ({"--plan": "plan.yaml", "--method": "greedy"}, "leave out either --plan or --agent and --method"),
        ({"--plan": "nowhere.yaml"}, "nowhere.yaml does not exist"),
        ({"--plan": "."}, ". is a folder, not a plan; give a plan.yaml"),
        ({"--plan": "net.py"}, "net.py cannot be read as a plan"),
        ({"--method": "knapsack", "--evaluations": "0"}, "evaluations=0 must be at least 1"),
        ({"--method": "knapsack", "--seed": "-1"}, "seed=-1 must lie between 0 and"),
        ({"--method": "knapsack", "--seed": "9999999999"}, "seed=9999999999 must lie between 0 and"),
        ({"--method": "knapsack", "--max-storage": "1.5"}, "max_storage=1.5 must be a share of the original's"),
        ({"--method": "knapsack", "--max-latency": "0"}, "max_latency=0.0 must be a share of the original's"),
        ({"--method": "knapsack", "--max-accuracy-drop": "-1"}, "max_accuracy_drop=-1.0 must be percentage points"),
        ({"--method": "knapsack", "--storage-weight": "-1"}, "must lie between 0 and 1,000,000"),
        (
            {"--method": "knapsack", "--accuracy-weight": "0", "--storage-weight": "0", "--latency-weight": "0"},
            "and not all be 0",
        ),
        ({"--method": "knapsack", "--out": "net.py"}, "net.py is a file; name a folder"),
        ({"--method": "knapsack", "--out": "."}, "holds other files (net.py); name a new or an empty folder"),
        (
            {"--method": "knapsack", "--model": "digits-lenett"},
            "unknown network 'digits-lenett'. Did you mean 'digits-le",
        ),
        (
            {"--method": "knapsack", "--model": "zoo:resnet20"},
            "needs weights for cifar10; give their file with --weigh",
        ),
        ({"--method": "knapsack", "--model": "nowhere.py:make"}, "nowhere.py does not exist"),
        ({"--method": "knapsack", "--model": "net.py:mke"}, "net.py has no function 'mke'; it has make"),
        ({"--method": "knapsack", "--model": "net.py:broken"}, "net.py:broken() failed: RuntimeError: boom"),
        ({"--method": "knapsack", "--model": "net.py:lazy"}, "leaves the shape of 1.weight, 1.bias open"),
        ({"--method": "knapsack", "--model": "net.py:colour"}, "the network fails on images (1, 8, 8)"),
        ({"--method": "knapsack", "--model": "net.py:five"}, "it must give one tensor of 10 logits"),
        ({"--method": "knapsack", "--data": "digit"}, "unknown dataset 'digit'. Did you mean 'digits'"),
        ({"--method": "knapsack", "--data": "mnist"}, "a path is missing"),
        ({"--method": "knapsack", "--data": "folder:nowhere"}, "nowhere does not exist"),
        ({"--method": "knapsack", "--data": "folder:."}, "needs images"),
    ],
)
def test_mistakes_of_compress(place, refused, changes, said):
    assert said in refused(command("compress", {**COMPRESS, **changes}))
    assert not (place / "out").exists()


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--networks": "digits-mlp,digits-lent"}, "unknown network 'digits-lent'. Did you mean 'digits-lenet'"),
        ({"--networks": "resnet20"}, "network 'resnet20' is not trained on the spot"),
        ({"--networks": "digits-mlp", "--hold-out": "digits-mlp"}, "no network is left to train on"),
        ({"--networks": "digits-mlp", "--hold-out": "digits-vgg"}, "hold_out names digits-vgg, not among"),
        ({"--data": "digitz"}, "unknown dataset 'digitz'"),
        ({"--data": "digits", "--networks": "cancer-mlp,stdlib-gpt"}, "cancer-mlp, stdlib-gpt have data of their own"),
        ({"--steps": "0"}, "--steps 0 must be at least 1"),
        ({"--envs": "0"}, "--envs 0 must be at least 1"),
        ({"--seed": "-1"}, "seed=-1 must be a whole number between 0 and"),
        ({"--seed": "9999999999"}, "seed=9999999999 must be a whole number between"),
        ({"--out": "net.py"}, "net.py is a file; name a folder"),
        ({"--memory": "0"}, "memory=0.0 must be GiB, a number above 0"),
    ],
)
def test_mistakes_of_train(place, refused, changes, said):
    assert said in refused(command("train", {"--out": "out", **changes}))
    assert not (place / "out").exists()


def weights(change):
    tensors = {
        "0.weight": torch.zeros(8, 1, 3, 3),
        "0.bias": torch.zeros(8),
        "2.weight": torch.zeros(8, 8, 3, 3),
        "2.bias": torch.zeros(8),
        "5.weight": torch.zeros(10, 72),
        "5.bias": torch.zeros(10),
    }
    change(tensors)
    return tensors


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("0.bias"), "missing: 0.bias"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda tensors: tensors.update({"5.bias": torch.zeros(9)}), "of another shape: 5.bias (9,) instead of (10,)"),
        (lambda tensors: tensors["2.weight"].fill_(float("nan")), "hold NaN or infinite values in 2.weight"),
    ],
)
def test_weights_that_do_not_fit(place, refused, change, said):
    save_file(weights(change), "weights.safetensors")
    assert said in refused(command("compress", {**KNAPSACK, "--weights": "weights.safetensors"}))


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.safetensors", b"", "is empty"),
        ("empty.pt", b"", "is empty"),
        ("junk.safetensors", b"abc" * 50, "damaged or no safetensors file"),
        ("junk.pt", b"abc" * 50, "damaged or holds more than tensors"),
        ("nowhere.pt", None, "does not exist"),
    ],
)
def test_files_of_weights_that_cannot_be_read(place, refused, name, content, said):
    if content is not None:
        (place / name).write_bytes(content)
    assert said in refused(command("compress", {**KNAPSACK, "--weights": name}))


@pytest.mark.usefixtures("cheap", "place")
def test_an_agent_of_other_features_is_refused(refused):
    RecipeAgent.untrained(len(CONTEXT_FEATURES) + 1, len(ROW_FEATURES), seed=0).save(Path("sizes"))
    assert "train it again" in refused(command("compress", {**COMPRESS, "--agent": "sizes"}))
    scorer = RecipeAgent.untrained(len(CONTEXT_FEATURES), len(ROW_FEATURES), seed=0).scorer
    RecipeAgent(scorer, ("other", *CONTEXT_FEATURES[1:]), ROW_FEATURES).save(Path("names"))
    assert "was trained on other context_features" in refused(command("compress", {**COMPRESS, "--agent": "names"}))
    RecipeAgent(scorer, CONTEXT_FEATURES, ROW_FEATURES).save(Path("runs/agent"))
    assert "did you mean runs/agent?" in refused(command("compress", {**COMPRESS, "--agent": "runs"}))


@pytest.mark.usefixtures("cheap")
def test_a_finished_run_is_not_overwritten(done, place, refused):
    before = (done / "report.json").read_bytes()
    said = refused(command("compress", {**KNAPSACK, "--out": str(done)}))
    assert "done holds a finished run; name another folder or delete it" in said
    assert (done / "report.json").read_bytes() == before


@pytest.mark.usefixtures("cheap", "place")
def test_a_folder_that_another_run_writes_to_is_refused_before_the_search(refused):
    with claimed(Path("out")):
        assert "another run is writing to out" in refused(command("compress", KNAPSACK))


# Plans


@pytest.mark.usefixtures("cheap", "place")
def test_a_run_in_a_plans_place_is_told_with_its_plan(done, refused):
    said = refused(command("compress", {**COMPRESS, "--plan": str(done)}))
    assert f"is a folder, not a plan; did you mean {done / 'plan.yaml'}?" in said


@pytest.fixture
def unpriced(monkeypatch):
    """Pricing is a failure of the test: a plan must be checked before it."""

    def forbidden(_):
        raise AssertionError("too late: pricing has begun")

    monkeypatch.setattr(Subject, "price", forbidden)


@pytest.mark.usefixtures("place", "unpriced")
@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (
            PLAN.format("low_rnk", "identity", "identity"),
            "layer 0: unknown technique 'low_rnk'. Did you mean 'low_rank'",
        ),
        (
            PLAN.format("identity", "uniform_quantization(bits=99)", "identity"),
            "layer 2: uniform_quantization: bits=99",
        ),
        (PLAN.format("identity", "identity", "filter_pruning(ratio=0.5)"), "layer '5' cannot take filter_pruning"),
        (PLAN.format("activation_quantization", "identity", "identity"), "layer '0' cannot take activation_quant"),
        (PLAN.format("activation_quantization", "identity", "identity"), "(the plan was made for 'tiny')"),
        (PLAN.replace("'2'", "'7'").format(*["identity"] * 3), "the plan for 'tiny' has no recipe for layer '2'"),
        (PLAN.format(*["identity"] * 3) + "  '9': identity\n", "names layer '9', which this network does not have"),
        (
            PLAN.format("low_rank + filter_pruning", "identity", "identity"),
            "layer 0: low_rank and filter_pruning are both of stage STRUCTURE; keep one of them",
        ),
        (
            PLAN.format("low_rank(rate=0.5)", "identity", "identity"),
            "layer 0: unknown field of low_rank 'rate'. Did you mean 'ratio'",
        ),
        (
            "plywise: plan/1\npatterns: {'layer*': low_rank}",
            "'layer*' fits no layer of net.py:make; the nearest are ",
        ),
        (
            "plywise: plan/1\npatterns: {'*': low_rank}\nlayers: {'5': filter_pruning}",
            "layer '5' cannot take filter_pruning",
        ),
        ("hello", "is not a plan: it must begin with 'plywise: plan/1'"),
        ("", "is not a plan"),
    ],
)
def test_plans_that_do_not_fit(refused, plan, said):
    Path("plan.yaml").write_text(plan)
    assert said in refused(command("compress", {**COMPRESS, "--plan": "plan.yaml"}))


@pytest.mark.usefixtures("quick")
def test_an_edited_plan_is_applied_as_it_is(place, capsys):
    """5 bits are not on the price list, but allowed, and it is said."""
    recipes = ("uniform_quantization(bits=5)", "identity", "uniform_quantization(bits=4)")
    Path("plan.yaml").write_text(PLAN.format(*recipes))
    main(command("compress", {**COMPRESS, "--plan": "plan.yaml", "--max-accuracy-drop": "null"}))
    shown = capsys.readouterr()
    report = json.loads((place / "out" / "report.json").read_text())
    assert [row["recipe"] for row in report["layers"]] == list(recipes)
    assert report["method"] == "plan"
    assert report["evaluations"] == 0
    assert "uniform" not in report
    assert "note: uniform_quantization(bits=5) is not on the price list of layer 0; applied as written" in shown.err
    assert "unpriced" in report["layers"][0]
    assert "note: the plan was made for 'tiny' and fits 'net.py:make' too; applied as written" in shown.err
    assert report["compressed"]["storage_bytes"] < report["original"]["storage_bytes"]


@pytest.mark.usefixtures("quick")
def test_recipes_by_pattern_become_a_plan_of_every_layer(place, capsys):
    Path("scheme.yaml").write_text(
        "plywise: plan/1\npatterns:\n  '*': filter_pruning(ratio=0.5)\n  type:Linear: uniform_quantization(bits=4)\n"
        "layers:\n  '0': identity\n"
    )
    main(command("compress", {**COMPRESS, "--plan": "scheme.yaml", "--max-accuracy-drop": "null"}))
    assert "left as it is" not in capsys.readouterr().err
    expected = ["identity", "filter_pruning(ratio=0.5)", "uniform_quantization(bits=4)"]
    assert [str(recipe) for recipe in Plan.load(place / "out" / "plan.yaml").values()] == expected


@pytest.mark.usefixtures("quick")
def test_layers_that_a_pattern_does_not_fit_are_told_on_the_console_and_in_the_report(place, capsys):
    Path("scheme.yaml").write_text("plywise: plan/1\npatterns:\n  '*': filter_pruning(ratio=0.5)\n")
    main(command("compress", {**COMPRESS, "--plan": "scheme.yaml", "--max-accuracy-drop": "null"}))
    row = json.loads((place / "out" / "report.json").read_text())["layers"][2]
    assert row["recipe"] == "identity"
    assert row["refused"].startswith("left as it is, '*' does not fit it: filter_pruning: ")
    assert f"note: layer 5 is {row['refused']}" in capsys.readouterr().err


# Demands


@pytest.mark.usefixtures("place")
def test_a_demand_that_no_plan_can_meet(refused, monkeypatch):
    def forbidden(*_):
        raise AssertionError("too late: the search has begun")

    monkeypatch.setattr("plywise.env.exact_evaluator.ExactEvaluator.evaluate", forbidden)
    said = refused(command("compress", {**KNAPSACK, "--max-storage": "0.001", "--max-energy": "0.5"}))
    assert "holds max_storage=0.001 (reachable: 0." in said
    assert "max_energy=0.5 (reachable: 0." in said
    assert "max_latency" not in said


@pytest.mark.usefixtures("place", "quick")
def test_the_reachable_value_that_is_named_can_be_asked_for(refused):
    options = {**KNAPSACK, "--max-accuracy-drop": "null"}
    said = refused(command("compress", {**options, "--max-storage": "0.001"}))
    reachable = said.partition("reachable: ")[2].partition(")")[0]
    with suppress(SystemExit):  # the file may differ from the estimate by a few bytes
        main(command("compress", {**options, "--max-storage": reachable}))
    report = json.loads(Path("out/report.json").read_text())
    size, whole = (report[name]["storage_bytes"] for name in ("compressed", "original"))
    assert 0.95 * float(reachable) * whole <= size <= float(reachable) * whole + 64


@pytest.mark.usefixtures("place", "quick")
def test_a_broken_ceiling_ends_with_another_exit_code(capsys):
    Path("plan.yaml").write_text(PLAN.format(*["identity"] * 3))
    with pytest.raises(SystemExit) as ended:
        main(command("compress", {**COMPRESS, "--plan": "plan.yaml", "--max-storage": "0.5"}))
    assert ended.value.code == 3
    assert "NOT met: beyond the ceiling of storage by 0." in capsys.readouterr().out


def test_a_file_that_does_not_do_what_was_scored_ends_with_that_exit_code_too(place, quick, capsys):
    quick.every = True
    quick.changed = lambda path, outputs: -outputs if path.parent.name == "out" else outputs
    with pytest.raises(SystemExit) as ended:
        main(command("compress", FREE))
    assert ended.value.code == 3
    assert sorted(path.name for path in (place / "out").iterdir()) == FILES
    shown = " ".join(capsys.readouterr().out.split())
    assert "check FAILED: model.onnx reaches the accuracy of the compressed network in torch: out/model.onnx" in shown
    assert "likely cause: graph optimisations of ONNX Runtime" in shown
    assert "NOT met: a check of the files failed" in shown


# A whole run


def test_the_folder_of_a_run(done):
    report = json.loads((done / "report.json").read_text())
    assert report["demand_met"]
    assert report["method"] == "knapsack"
    assert report["validation"]["samples"] == 360
    assert report["validation"]["kind"].startswith("cut from the training split; whether the network was trained on")
    assert report["compressed"]["storage_bytes"] == (done / "weights.safetensors").stat().st_size
    assert report["compressed"]["onnx_bytes"] == (done / "model.onnx").stat().st_size
    assert report["seconds"] > 0.5
    uniform = report["uniform"]
    assert report["evaluations"] > report["uniform_evaluations"] > 0
    assert uniform["demand_met"] == (uniform["storage_bytes"] <= 0.3 * report["original"]["storage_bytes"])


def test_evaluate_finds_what_the_report_says(done, place, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["evaluate", "--folder", str(done), "--model", "net.py:make"])
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    said = {row[1].strip(): (row[2].strip(), row[3].strip()) for row in rows}
    for name in ("accuracy in torch, %", "bytes of weights.safetensors", "bytes of model.onnx"):
        assert said[name][0] == said[name][1], name
    assert abs(float(said["accuracy in ONNX Runtime, %"][1]) - float(said["accuracy in torch, %"][1])) < 0.3


def test_evaluate_measures_as_the_report_did(done, place, capsys, monkeypatch):
    folder, asked = shutil.copytree(done, place / "copy"), []
    report = json.loads((folder / "report.json").read_text())
    report["device"] |= {"threads": 2}
    report["compressed"] |= {"batch": 8, "energy_source": "measured", "energy_mj": 0.5}
    (folder / "report.json").write_text(json.dumps(report))

    def timed(paths, shape, execution):
        asked.append((shape[0], execution))
        return [Timing(1.0, 0.9, 1.1)]

    def energy(paths, shape, counter, execution):
        asked.append((shape[0], execution))
        return [10.0]

    monkeypatch.setattr(evaluate_files, "time_models", timed)
    monkeypatch.setattr(measuring, "processor_counter", lambda: "a counter")
    monkeypatch.setattr(measuring, "measure_energy", energy)
    monkeypatch.setenv("COLUMNS", "200")
    main(["evaluate", "--folder", str(folder), "--model", "net.py:make"])
    assert asked == [(8, Execution(2))] * 2
    shown = capsys.readouterr().out
    assert "latency, ms (median; threads: 2, batch: 8)" in shown
    assert [float(cell) for cell in next(row for row in shown.splitlines() if "energy" in row).split("│")[2:4]] == [
        0.5,
        1.25,
    ]


@pytest.mark.parametrize("device", [None, {"latency_source": "measured", "threads": "x", "provider": "y"}])
def test_reports_without_a_device_are_refused(device):
    with pytest.raises(FileFormatError, match="the report"):
        Running.reported({"device": device, "compressed": {}})


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "is of the network 'net.py:make', which is not in the zoo"),
        ({"--model": "net.py:five"}, "the file is of another network"),
        ({"--model": "digits-mlpp"}, "unknown network 'digits-mlpp'"),
        ({"--model": "net.py:make", "--data": "digitz"}, "unknown dataset 'digitz'"),
        ({"--folder": "nowhere"}, "nowhere holds no finished run"),
    ],
)
def test_mistakes_of_evaluate(done, refused, changes, said):
    assert said in refused(command("evaluate", {"--folder": str(done), **changes}))


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors"])
def test_evaluate_notices_files_that_are_not_those_handed_over(done, place, refused, name):
    folder = shutil.copytree(done, place / "copy")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    arguments = ["evaluate", "--folder", str(folder), "--model", "net.py:make"]
    assert f"copy/{name} is damaged or altered" in refused(arguments)
    (folder / name).unlink()
    assert f"copy/{name} is missing" in refused(arguments)


def test_evaluate_shows_what_is_there_of_a_network_that_could_not_be_exported(done, place, capsys):
    shutil.copytree(done, "copy")
    Path("copy/model.onnx").unlink()
    report = json.loads(Path("copy/report.json").read_text())
    del report["checksums"]["model.onnx"]
    report["compressed"] |= {"accuracy": None, "onnx_bytes": None, "latency_ms": None}
    Path("copy/report.json").write_text(json.dumps(report))
    main(["evaluate", "--folder", "copy", "--model", "net.py:make"])
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    said = {row[1].strip(): (row[2].strip(), row[3].strip()) for row in rows}
    assert said["bytes of model.onnx"] == said["accuracy in ONNX Runtime, %"] == ("-", "-")
    assert said["bytes of weights.safetensors"][0] == said["bytes of weights.safetensors"][1] != "-"


def test_evaluate_takes_reports_that_know_no_checksums(done, place):
    folder = shutil.copytree(done, place / "copy")
    report = json.loads((folder / "report.json").read_text())
    del report["checksums"]
    (folder / "report.json").write_text(json.dumps(report))
    main(["evaluate", "--folder", str(folder), "--model", "net.py:make"])


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"compressed": {"accuracy": "x"}}', b"\xff"])
def test_a_damaged_report_is_told(refused, content):
    Path("made").mkdir()
    Path("made/report.json").write_bytes(content)
    assert "made/report.json is damaged" in refused(["evaluate", "--folder", "made"])


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("path", ["nowhere/questions.zip", "folder"])
def test_questions_that_cannot_be_written_are_told_before_the_work(refused, path):
    Path("folder").mkdir()
    said = refused(["profile", "--model", "net.py:nothing", "--data", "digits", "--ask", path])
    assert f"--ask {path}: name a file in a folder that is there" in said


def test_the_python_front_door_gives_the_same(done, place):
    with pytest.raises(ConfigurationError, match="who should look for the plan"):
        plywise.compress("net.py:make", "digits", "out")
    with pytest.raises(ConfigurationError, match="Did you mean 'max_storage'"):
        plywise.compress("net.py:make", "digits", "out", method="knapsack", max_strage=0.1)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 10),
    )
    images = torch.randn(3, 1, 8, 8)
    for given in (model, "net.py:make"):
        loaded = plywise.load(done, given)
        assert torch.equal(loaded(images), load_packed(done / "weights.safetensors", model)(images))


@pytest.mark.usefixtures("cheap", "place")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model": 3},
            "model is a int and must be an nn.Module, or a text: .* '__main__:function' is one of your own",
        ),
        ({"max_storage": "0.15"}, "max_storage='0.15' must be a number or None"),
        ({"accuracy_weight": None}, "accuracy_weight=None must be a number$"),
        ({"memory": 1e9}, r"memory=1000000000.0 must be GiB, a number above 0"),
        ({"evaluations": "4"}, "evaluations='4' must be at least 1 and at most .* a whole number"),
        ({"seed": 0.5}, r"seed=0\.5 must lie between 0 and .*, a whole number"),
        ({"recover": "distill", "epochs": "3"}, "epochs='3' must be 1 to 100,000, a whole number"),
        ({"recover": "distill", "gradients": "minifloat", "gradients_of": "weight"}, "kind of gradient 'weight'"),
    ],
)
def test_mistakes_in_python(changes, said):
    with pytest.raises(ConfigurationError, match=said):
        plywise.compress(**{"model": "net.py:make", "data": "digits", "out": "out", "method": "knapsack", **changes})


@pytest.fixture
def given_plan(place):
    """Two files of a plan for the tiny network: one imports the other."""
    (place / "base.yaml").write_text(
        "plywise: plan/1\nrecipes: {light: low_rank(ratio=0.5) + uniform_quantization(bits=5)}\n"
        "patterns: {'*': light, '[02]': light(bits=8), 'type:Conv2d': identity}\n"
    )
    (place / "mine.yaml").write_text(
        "plywise: plan/1\nimport: base.yaml\nlayers: {'2': uniform_quantization(bits=4)}\n"
    )
    return place


@pytest.mark.usefixtures("given_plan")
def test_a_plan_is_checked_and_priced_without_building_it(capsys, monkeypatch):
    monkeypatch.setattr("plywise.env.bank.bank.Bank.stitch", lambda *_, **__: pytest.fail("it is put together"))
    arguments = ["plan", "mine.yaml", "--model", "net.py:make", "--data", "digits"]
    main([*arguments, "--json"])
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert "pattern '[02]' decides no layer" in shown.err
    assert [layer["recipe"] for layer in found["layers"]] == [
        "identity",
        "uniform_quantization(bits=4)",
        "low_rank(ratio=0.5) + uniform_quantization(bits=5)",
    ]
    assert 0.1 < found["shares"]["storage"] < 0.5
    assert found["layers"][0]["accuracy_drop"] == 0.0
    assert found["accuracy_drop"] > 0.0 < found["spread"]
    assert not found["layers"][2]["on_price_list"]
    main([*arguments, "--quiet"])
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "The plan fits net.py:make: storage 0." in " ".join(shown.out.split())
    assert "\n  low_rank(ratio=0.5) + uniform_quantization(bits=5)\n" in shown.out


def test_what_the_plan_command_tells_of_one_recipe_is_what_the_report_tells(given_plan, done, capsys):
    main(["plan", str(done / "plan.yaml"), "--model", "net.py:make", "--data", "digits", "--json"])
    found, report = json.loads(capsys.readouterr().out), json.loads((done / "report.json").read_text())
    told = [layer["costs"]["after"]["storage_bytes"] for layer in report["layers"] if "costs" in layer]
    assert [layer["after"]["storage_bytes"] for layer in found["layers"]] == pytest.approx(told, rel=0.05)  # unrepaired
    share = report["compressed"]["storage_bytes"] / report["original"]["storage_bytes"]
    assert found["shares"]["storage"] == pytest.approx(share, rel=0.1)  # what is no layer is priced at its most


@pytest.mark.usefixtures("given_plan", "cheap")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan"], "missing: --plan"),
        (["plan", "mine.yaml"], "missing: --model"),
        (["plan", "none.yaml", "--model", "net.py:make"], "none.yaml does not exist"),
        (["plan", "mine.yaml", "wrong.yaml", "--model", "net.py:make"], "pattern *: unknown technique 'ligt'"),
        (["compress", "--plan=mine.yaml", "--plan=none.yaml", "--model=x", "--out=o"], "unknown network 'x'"),
        (["compress", "--plan=mine.yaml", "--plan=none.yaml", "--model=net.py:make", "--out=o"], "none.yaml does not"),
    ],
)
def test_mistakes_of_plans(refused, arguments, said):
    Path("wrong.yaml").write_text("plywise: plan/1\npatterns: {'*': ligt}\n")
    assert said in refused(arguments)


@pytest.mark.usefixtures("given_plan", "quick")
def test_several_plans_are_applied_and_the_last_wins(capsys):
    Path("last.yaml").write_text("plywise: plan/1\nrecipes: {light: uniform_quantization(bits=6)}\n")
    plans = ["--plan", "mine.yaml", "--plan", "last.yaml"]
    with suppress(SystemExit):
        main([*command("compress", {**COMPRESS, "--max-accuracy-drop": "null"}), *plans, "--json"])
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert report == json.loads(Path("out/report.json").read_text())
    assert report["layers"][2]["recipe"] == "uniform_quantization(bits=6)"
    assert "--plan mine.yaml --plan last.yaml" in report["command"]


def test_profile_lists_layers(done, place, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["profile", "--model", "net.py:make", "--data", "digits"])
    shown = capsys.readouterr().out
    row = json.loads((done / "report.json").read_text())["layers"][1]["choices"]
    assert row["legal"] > row["offered"] > 1
    assert f"{row['legal']}/{row['offered']}" in shown
    assert "4.61k" in shown  # 64 places x 8 channels x 9 weights
    assert "sum" in shown


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("device", "execution", "batch"), [("here:2x3", [2, CPU], 3), ("raspberry-pi-4", [1, CPU], 1), (None, [1, CPU], 1)]
)
def test_questions_ask_for_the_threads_and_the_batch_of_the_device(device, execution, batch, monkeypatch, capsys):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(LatencyTable, "milliseconds", lambda table, chains, progress=True: np.ones(len(chains)))
    options = {"--model": "net.py:make", "--data": "digits", "--ask": "questions.zip"}
    main(command("profile", options if device is None else {**options, "--device": device}))
    with zipfile.ZipFile("questions.zip") as archive:
        questions = json.loads(archive.read("questions.json"))
    assert (questions["execution"], questions["batch"]) == (execution, batch)
    assert {question["shape"][0] for question in questions["chains"]} == {batch}
    assert f"(threads: {execution[0]}, batch: {batch})" in " ".join(capsys.readouterr().out.split())


# Interruptions, and caches that cannot be used

STOPPED = "stopped; what was finished is kept, and the same command goes on from there"


def test_ctrl_c_ends_with_one_message_and_its_own_exit_code(prepared):
    assert prepared.codes == [130, 130, 130, 0]
    assert prepared.said == [STOPPED] * 3 + [""]


def test_ctrl_c_before_the_hand_over_leaves_no_folder(prepared):
    assert prepared.folders == [False, False, False, True]


def test_what_was_finished_is_not_done_again(prepared):
    for attempt, stage in enumerate(STAGES):
        assert sum(stage in key for key in prepared.kept[attempt]) == 2
        assert any(stage in key for later in prepared.kept[attempt + 1 :] for key in later)
    keys = [key for attempt in prepared.kept for key in attempt]
    assert len(set(keys)) == len(keys)


@pytest.mark.usefixtures("quick")
def test_ctrl_c_while_handing_over_leaves_a_folder_that_the_same_command_finishes(place, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "export_onnx", stop)
        with pytest.raises(SystemExit) as ended:
            main(command("compress", FREE))
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip() == STOPPED
    assert sorted(path.name for path in (place / "out").iterdir()) == ["UNFINISHED", "plan.yaml", "weights.safetensors"]
    main(command("compress", FREE))
    assert sorted(path.name for path in (place / "out").iterdir()) == FILES


@pytest.mark.usefixtures("quick")
def test_a_full_disk(place, refused, monkeypatch):
    write = Path.write_bytes

    def full(path, content):
        if "weights.safetensors" in path.name and path.parent.name == "out":
            write(path, content[:10])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        said = refused(command("compress", FREE))
    assert "No space left on device: out/weights.safetensors; make room: what was finished is kept" in said
    assert sorted(path.name for path in (place / "out").iterdir()) == ["UNFINISHED", "plan.yaml"]
    main(command("compress", FREE))
    assert sorted(path.name for path in (place / "out").iterdir()) == FILES


@pytest.fixture
def new_plan():
    """A command that has something to keep: a plan that nobody has scored yet."""
    return command("compress", {**FREE, "--method": "random", "--evaluations": "1", "--seed": "77"})


@pytest.mark.usefixtures("place")
def test_a_locked_cache(prepared, refused, monkeypatch, new_plan):
    monkeypatch.setattr("plywise.env.storage.sqlite_file.PATIENCE_SECONDS", 0.05)
    with closing(sqlite3.connect(prepared.home / "cache" / "results.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        said = refused(new_plan)
    assert "results.sqlite cannot be used (database is locked); another process holds it" in said


@pytest.mark.usefixtures("place")
def test_a_cache_that_is_only_read(refused, monkeypatch, new_plan):
    connect = sqlite3.connect

    def read_only(path, **options):
        return connect(f"file:{path}?mode=ro", uri=True, **options)

    monkeypatch.setattr("plywise.env.storage.sqlite_file.sqlite3.connect", read_only)
    said = refused(new_plan)
    assert "attempt to write a readonly database" in said
    assert "is writable and its disk not full, or set PLYWISE_CACHE to another folder" in said


def test_a_cache_that_cannot_be_made(place, refused, monkeypatch, new_plan):
    monkeypatch.setenv("PLYWISE_CACHE", str(place / "net.py"))
    assert "set PLYWISE_CACHE to a writable folder" in refused(new_plan)


def test_runs_at_the_same_time_share_a_cache(tmp_path):
    """Each opens the file anew for each value, as runs do; the first ones create it."""
    barrier, failed = threading.Barrier(6), []

    def fill(number):
        barrier.wait()
        try:
            for value in range(10):
                ResultStore(tmp_path / "results.sqlite").put(f"{number}/{value}", value)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    store = ResultStore(tmp_path / "results.sqlite")
    assert all(store.get(f"{number}/{value}") == value for number in range(6) for value in range(10))


# Defects of ours


@pytest.mark.usefixtures("place")
def test_debug_shows_the_traceback():
    with pytest.raises(ConfigurationError, match="evaluations=0"):
        main([*command("compress", KNAPSACK), "--evaluations", "0", "--debug"])


def test_a_path_that_is_not_there_is_not_said_to_be_gone_on_from(refused, monkeypatch):
    monkeypatch.setattr(
        "plywise.experiments.commands.listings.show_list", lambda *_: Path("/nope/x.zip").write_bytes(b"")
    )
    assert refused(["list"]).endswith("directory: /nope/x.zip; check that it is there and may be read or written\n")


def test_defects_are_not_dressed_up_as_mistakes(monkeypatch):
    def defect(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("plywise.experiments.commands.listings.show_list", defect)
    with pytest.raises(ZeroDivisionError):
        main(["list"])


# Training runs


def test_a_folder_of_another_training_run(tmp_path, refused, monkeypatch):
    """Runs are compared by what they were asked, before anything is priced."""
    monkeypatch.chdir(tmp_path)
    asked = {"networks": ["digits-mlp"], "data": "digits", "preprocessing": {}, "devices": ["here"]}
    asked |= dataclasses.asdict(PPOSettings(seed=0))
    Path("out").mkdir()
    Path("out/run.json").write_text(json.dumps(asked))
    with pytest.raises(ConfigurationError, match=r"networks: \['digits-mlp'\] there, \['digits-vgg'\] now"):
        train_agent(["digits-vgg"], out=Path("out"), settings=PPOSettings(seed=0))
    with pytest.raises(ConfigurationError, match="seed: 0 there, 1 now"):
        train_agent(["digits-mlp"], out=Path("out"), settings=PPOSettings(seed=1))
    with pytest.raises(ConfigurationError, match=r"devices: \['here'\] there, \['jetson-nano'\] now"):
        train_agent(["digits-mlp"], out=Path("out"), settings=PPOSettings(seed=0), devices=["jetson-nano"])
    Path("out/run.json").write_text("{")
    assert "out/run.json is damaged" in refused(["train", "--out", "out"])
    Path("out/run.json").unlink()
    Path("out/tensorboard").mkdir()
    assert "out holds other files (tensorboard) and no run.json" in refused(["train", "--out", "out"])
    assert Path("out/tensorboard").exists()


def test_a_folder_that_another_run_trains_in(tmp_path):
    with alone_in(tmp_path / "out"), pytest.raises(ConfigurationError, match="another run is writing to"):
        train_agent(["digits-mlp"], out=tmp_path / "out")


@pytest.mark.usefixtures("cheap")
def test_an_agent_is_not_trained_into_a_compressed_network(done, refused):
    assert "holds other files (model.onnx, model.onnx.xz" in refused(command("train", {"--out": str(done)}))


def test_a_device_that_is_not_known_is_refused_before_networks_are_trained(tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refused(["train", "--devices", "here,jetson-nan", "--networks", "digits-mlp"])
    assert "jetson-nan" in said
    assert "jetson-nano" in said
    assert not list(tmp_path.rglob("zoo"))


def test_warnings_of_ours_are_one_line():
    usual = warnings.formatwarning
    with telling_mistakes():
        assert warnings.formatwarning("rough", UserWarning, handover.__file__, 1) == "plywise: rough\n"
        assert "UserWarning: other" in warnings.formatwarning("other", UserWarning, torch.__file__, 1)
    assert warnings.formatwarning is usual


@pytest.mark.parametrize("script", [train_module, compress_module])
def test_scripts_want_their_options_spelled_out(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script.py", "--see", "1"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script.__file__, run_name="__main__")
    assert end.value.code == 2
    assert "unknown option --see" in capsys.readouterr().err


def test_networks_are_priced_on_each_device(monkeypatch, tmp_path):
    priced, processes = [], []

    def run(task, _):
        priced.append(task)
        return task, task.network == "digits-vgg"

    def executor(count):
        processes.append(count)
        return InProcess(NoSetup())

    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path))
    monkeypatch.setattr(price_tables, "_executor", executor)
    monkeypatch.setattr(Pricing, "run", run)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.warns(RoughLatencyWarning, match="latencies of 2 of 4 networks vary much"):
        tables = price_networks(["digits-mlp", "digits-vgg"], "digits", 3, ("here", "jetson-nano"))
    assert processes == [2]
    assert tables == [
        Pricing(name, "digits", 3, device)
        for name in ("digits-mlp", "digits-vgg")
        for device in ("here", "jetson-nano")
    ]
    assert [task.network for task in priced] == ["digits-vgg"] * 2 + ["digits-mlp"] * 2  # the slower one first


def test_only_warnings_of_a_busy_machine_are_kept_back(monkeypatch):
    def price(*_):
        warnings.warn("busy", RoughLatencyWarning, stacklevel=1)
        warnings.warn("what matters", UserWarning, stacklevel=1)
        return "table"

    monkeypatch.setattr(Pricing, "price", price)
    with pytest.warns(UserWarning, match="what matters") as told:
        assert Pricing("digits-mlp", "digits").run() == ("table", True)
    assert len(told) == 1


def test_a_finished_training_run_is_loaded_without_pricing(tmp_path, monkeypatch):
    def forbidden(*_):
        raise AssertionError("priced again")

    monkeypatch.setattr("plywise.experiments.train_agent.price_networks", forbidden)
    settings = PPOSettings(seed=0)
    asked = {
        "networks": ["digits-mlp"],
        "data": "digits",
        "preprocessing": {},
        "devices": ["here"],
        **dataclasses.asdict(settings),
    }
    agent = RecipeAgent.untrained(len(CONTEXT_FEATURES), len(ROW_FEATURES), seed=5)
    agent.save(tmp_path / "agent")
    (tmp_path / "run.json").write_text(json.dumps(asked))
    found = train_agent(["digits-mlp"], out=tmp_path, settings=settings)
    assert found.weights_hash == agent.weights_hash


# Normalisation


def test_a_given_normalisation_is_reported_and_used_again(place, monkeypatch, warned, capsys):
    monkeypatch.setenv("PLYWISE_CACHE", str(place / "cache"))
    options = {"--model": "zoo:digits-mlp", "--data": "digits", "--out": "out", "--plan": "plan.yaml"}
    Path("plan.yaml").write_text("plywise: plan/1\npatterns: {'*': identity}\n")
    main(command("compress", {**options, "--mean": "0.25", "--std": "0.5"}))
    report = json.loads(Path("out/report.json").read_text())
    assert report["preprocessing"] == {
        "channels": "gray",
        "size": [8, 8],
        "crop": 1.0,
        "mean": [0.25],
        "std": [0.5],
        "source": "given",
        "in_words": "gray, 8x8, pixels in [0, 1], mean 0.25, std 0.5 (given)",
    }
    assert report["classes"] == list("0123456789")
    assert report["warnings"] == []
    capsys.readouterr()
    main(command("evaluate", {"--folder": "out"}))
    again = [line.split() for line in capsys.readouterr().out.splitlines() if "accuracy in torch" in line]
    said = f"{report['compressed']['torch_accuracy']:,.4g}"
    assert again[0].count(said) == 2
    main(command("evaluate", {"--folder": "out", "--mean": "-2", "--std": "1"}))
    shown = capsys.readouterr()
    assert "WARNING: the compressed network reaches" in shown.err
    assert "mean -2, std 1 (given)" in shown.err


def photos(root, count=20):
    """Photos of several sizes: `bright` ones have much red, `dark` ones a little."""
    for split in ("train", "val", "test"):
        for name, red in (("bright", 200), ("dark", 20)):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (12 + index % 3, 9), (red + index, 90, 40)).save(root / split / name / f"{index}.png")


def test_photos_of_several_sizes_are_prepared_as_asked(place, refused, warned, quick):
    photos(place / "photos")
    Path("plan.yaml").write_text("plywise: plan/1\npatterns: {'*': identity}\n")
    options = {"--model": "net.py:reddish", "--data": "folder:photos", "--out": "out", "--plan": "plan.yaml"}
    options |= {"--mean": "0", "--std": "1"}
    assert "--size 224" in refused(command("compress", options))
    main(command("compress", {**options, "--size": "6x8", "--crop": "0.75", "--channels": "rgb"}))
    report = json.loads(Path("out/report.json").read_text())
    assert report["warnings"] == []
    assert report["classes"] == ["bright", "dark"]
    assert report["original"]["torch_accuracy"] == 100.0
    found = report["preprocessing"]
    assert (found["size"], found["crop"], found["channels"], found["mean"]) == ([6, 8], 0.75, "rgb", [0.0] * 3)
    assert report["compressed"]["accuracy"] == 100.0
    again = evaluate_files._dataset(evaluate_files.read_report(Path("out")), None, None, make_preprocessing())
    assert again.preprocessing.report() == found
    assert again.input_shape == (3, 6, 8)
    other = evaluate_files._dataset(report, None, None, make_preprocessing(size=5))
    assert (other.input_shape, other.preprocessing.crop, other.mean) == ((3, 5, 5), 0.75, again.mean)


def test_a_usual_preprocessing_that_does_better_is_told_before_anything_is_studied(place, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    photos(place / "photos")
    Path("plan.yaml").write_text("plywise: plan/1\npatterns: {'*': identity}\n")
    options = {"--model": "net.py:reddish", "--data": "folder:photos", "--out": "out", "--plan": "plan.yaml"}
    monkeypatch.setattr(compress_module, "study_network", stop)
    with pytest.raises(SystemExit):
        main(command("compress", {**options, "--size": "6", "--mean": "2", "--std": "1"}))
    said = capsys.readouterr().err
    assert "100.0 % with ImageNet's mean and std" in said
    assert "give --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225:" in said


def test_an_original_near_chance_is_warned_of_before_and_after(place, warned, quick, capsys):
    main(command("compress", {**FREE, "--out": "guessing"}))
    shown, report = capsys.readouterr(), json.loads(Path("guessing/report.json").read_text())
    assert "WARNING: the original reaches" in shown.err
    assert "measured on the training split" in shown.err
    assert "WARNING: the original reaches" in " ".join(shown.out.split())
    assert report["warnings"][0] in shown.err


@pytest.mark.parametrize("name", ["compress", "profile"])
def test_wrong_normalisations_are_told_before_anything_runs(place, refused, name):
    options = KNAPSACK if name == "compress" else {"--model": "net.py:make", "--data": "digits"}
    said = refused(command(name, {**options, "--mean": "0.1,0.2,0.3", "--std": "0.5"}))
    assert "mean=0.1,0.2,0.3 has 3 numbers, the images have 1 channel" in said
    assert "mean is given without std" in refused(command(name, {**options, "--mean": "0.1"}))
    assert not Path("out").exists()


# Settings


def test_flat_options_become_one_value_for_each_subject():
    images = {"mean": "0.5", "std": 0.25, "size": "6x8", "crop": 1, "channels": "bgr"}
    options = {**images, "plan": "a.yaml", "recover": "distill", "epochs": 2, "seed": 3}
    lists = {"gradients": "ternary", "gradients_of": "weights, errors", "repair": ["means"], "device": Path("x.json")}
    found = make_compression({"model": "zoo:x", "data": "digits", "max_storage": 0.1, **options, **lists})
    assert found.source == SourceSettings(
        "zoo:x", "digits", preprocessing=Preprocessing((0.5,), (0.25,), (6, 8), 1.0, "bgr")
    )
    assert found.search == SearchSettings(plan=(Path("a.yaml"),), seed=3)
    assert found.demand == Demand(max_storage=0.1)
    assert (found.recovery.mode, found.recovery.epochs, found.recovery.seed) == ("distill", 2, 3)
    assert found.recovery.gradients_of == ("weights", "errors")
    assert (found.device, found.repair) == ("x.json", make_repair(["means"]))
    assert make_compression({"model": "m", "data": "d"}) == CompressionSettings(SourceSettings("m", "d"))


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(ConfigurationError, match="Did you mean 'max_storage'"):
        plywise.compress("zoo:digits-mlp", "digits", "out", max_storge=0.1)


@pytest.mark.parametrize("call", [main, plywise.compress])
def test_the_command_and_the_function_ask_for_the_same(call, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(compress_module, "compress_model", lambda settings, out: asked.append((settings, out)))
    monkeypatch.setattr(compress_module, "show_report", lambda _: None)
    given = {"model": "zoo:digits-mlp", "data": "digits", "method": "knapsack", "max_energy": 0.5, "evaluations": 7}
    if call is main:
        with pytest.raises(TypeError):  # there is no report to read
            main(command("compress", {f"--{name}": str(value) for name, value in {**given, "out": tmp_path}.items()}))
    else:
        call(out=tmp_path, **given)
    expected = CompressionSettings(
        SourceSettings("zoo:digits-mlp", "digits"),
        SearchSettings(method="knapsack", evaluations=7),
        Demand(max_energy=0.5),
    )
    assert asked == [(expected, tmp_path)]
