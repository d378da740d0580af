"""The hand-over folder: its files give what was scored, and its report says what the files are."""

import errno
import io
import json
import lzma
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from made_up_device import FakeLatency, samples
from rich.console import Console
from safetensors.torch import save_file
from tiny_networks import Plain, build
from torch import nn
from torch_runtime import TorchRuntime

from plywise.compressors.errors import ConfigurationError, ModelError
from plywise.compressors.packing.packed_file import load_packed, read_metadata
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe, Stage
from plywise.env.costs import latency
from plywise.env.costs.latency import LatencyTable
from plywise.env.runtime.runtime import run_model
from plywise.env.score.demand import Demand
from plywise.env.subject import Subject
from plywise.env.task.judge import CLASSIFIER
from plywise.env.task.metrics import Score
from plywise.env.task.samples import accuracy, labelled
from plywise.experiments.compress_model import show_report
from plywise.experiments.handover import files
from plywise.experiments.handover.checks import Checks
from plywise.experiments.handover.handover import hand_over
from plywise.experiments.handover.report import Origin, _timing
from plywise.experiments.handover.run_folder import UNFINISHED, check_folder, check_writable, claimed
from plywise.experiments.handover.uniform_int8 import uniform_plan

PLAN = {
    "conv1": "filter_pruning(ratio=0.5) + uniform_quantization(bits=4)",
    "conv2": "uniform_quantization(bits=7) + activation_quantization",
    "head": "uniform_quantization(bits=5)",  # allowed, but not on the price list
}
FILES = ["model.onnx", "model.onnx.xz", "plan.yaml", "report.html", "report.json", "weights.safetensors"]
DEMAND = Demand(50.0, max_storage=0.5)


def origin():
    return Origin("net.py:make", "folder:x", 0, "knapsack", 3, 0.0, "made up")


def handed_over(subject, plan, demand, test, folder):
    with claimed(folder):
        return hand_over(subject, plan, demand, test, folder, origin())


class Finished:
    """A subject, a plan and what was handed over."""

    def __init__(self, cache):
        model = build(Plain)
        self.subject = Subject(model, samples(model, 48, 1), samples(model, 64, 3), "plain", FakeLatency())
        self.plan = Plan("plain", {name: Recipe.parse(text) for name, text in PLAN.items()})
        self.test = samples(model, 150, 5)
        self.folder = cache / "made" / "here"
        self.report = handed_over(self.subject, self.plan, DEMAND, self.test, self.folder)
        self.realised = self.subject.bank.stitch(self.plan).model.eval()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLYWISE_CACHE", str(cache))
        yield Finished(cache)


@pytest.fixture
def unexported(monkeypatch):
    """Exports nothing, torch takes the runtime's place: for tests that are not about the exported file."""
    return TorchRuntime(monkeypatch)


def test_the_folder_holds_these_files_and_no_others(finished):
    assert sorted(path.name for path in finished.folder.iterdir()) == FILES


def test_everyone_may_read_the_files(finished):
    modes = {path.stat().st_mode & 0o777 for path in finished.folder.iterdir()}
    (finished.folder.parent / "usual").write_text("")
    assert modes == {(finished.folder.parent / "usual").stat().st_mode & 0o777}


def test_the_report_on_disk_is_the_one_returned(finished):
    assert json.loads((finished.folder / "report.json").read_text()) == finished.report


def test_sizes_are_those_of_the_files(finished):
    block = finished.report["compressed"]
    assert block["storage_bytes"] == (finished.folder / "weights.safetensors").stat().st_size
    assert block["onnx_bytes"] == (finished.folder / "model.onnx").stat().st_size
    assert block["onnx_xz_bytes"] == (finished.folder / "model.onnx.xz").stat().st_size < block["onnx_bytes"]
    shipped = (finished.folder / "model.onnx.xz").read_bytes()
    assert lzma.decompress(shipped) == (finished.folder / "model.onnx").read_bytes()
    assert block["storage_bytes"] < 0.3 * finished.report["original"]["storage_bytes"]


def test_the_original_is_as_large_as_its_safetensors_file(finished, tmp_path):
    save_file(dict(finished.subject.network.original.state_dict()), tmp_path / "original")
    assert finished.report["original"]["storage_bytes"] == (tmp_path / "original").stat().st_size


def test_onnx_runtime_reproduces_the_reports_accuracy(finished):
    onnx, test = finished.folder / "model.onnx", finished.test
    said = finished.report["compressed"]["accuracy"]
    assert abs(accuracy(run_model(onnx, test.inputs), test.labels) - said) <= 100 / len(test) + 1e-9
    agreement = (run_model(onnx, test.inputs).argmax(1) == test.logits(finished.realised).argmax(1)).float().mean()
    assert agreement >= 0.98


def test_loaded_weights_give_the_realised_networks_outputs(finished):
    loaded = load_packed(finished.folder / "weights.safetensors", build(Plain, seed=9))
    difference = (finished.test.logits(loaded) - finished.test.logits(finished.realised)).abs().max()
    assert difference <= 1e-5


def test_accuracy_is_that_of_the_realised_network_on_test(finished):
    realised, test = finished.realised, finished.test
    assert finished.report["compressed"]["torch_accuracy"] == accuracy(test.logits(realised), test.labels)
    onnx = run_model(finished.folder / "model.onnx", test.inputs)
    assert finished.report["compressed"]["accuracy"] == accuracy(onnx, test.labels)
    assert finished.report["original"]["accuracy"] == 100.0


def test_the_report_holds_what_the_design_lists(finished):
    report = finished.report
    for name in ("model", "data", "device", "demand", "demand_met", "seed", "evaluations", "seconds", "layers"):
        assert name in report
    for block in ("original", "uniform_int8", "compressed"):
        figures = report[block]
        for name in ("accuracy", "storage_bytes", "onnx_bytes", "latency_ms", "energy_mj", "macs", "parameters"):
            assert isinstance(figures[name], int | float)
        assert figures["energy_source"] == "modelled"
    assert report["model"] == "net.py:make"
    assert report["evaluations"] == 3
    assert report["seconds"] > 0
    assert report["demand"]["max_storage"] == 0.5
    assert report["device"]["name"] == "made up"


class Reading(nn.Module):
    """Looks up whole numbers from 0 to 39 in a table of which an input of 8 reads a fifth."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(40, 16)
        self.inner = nn.Linear(16, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, indices):
        return self.head(F.relu(self.inner(self.table(indices).mean(1))))


def same_shapes(recipe, integer):
    """Whether a recipe leaves a layer in one piece and whole, with 8-bit activations or without."""
    stages = {technique.stage for technique in Recipe.parse(recipe).techniques}
    return Stage.WEIGHTS in stages and Stage.STRUCTURE not in stages and (Stage.ACTIVATIONS in stages) == integer


@pytest.mark.parametrize(
    "text", ["uniform_quantization(bits=2)", "uniform_quantization(bits=7) + activation_quantization"]
)
def test_energy_is_the_same_in_price_score_and_report(tmp_path, monkeypatch, unexported, text):
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path / "cache"))
    indices = torch.randint(40, (48, 8), generator=torch.Generator().manual_seed(0))
    some = labelled(indices, indices.sum(1) % 5)
    subject = Subject(build(Reading), some, some, "reading", FakeLatency())
    table, wanted = subject.price(), ("uniform_quantization(bits=2)", text, text)
    plan = Plan("reading", {name: Recipe.parse(each) for name, each in zip(table.layers, wanted, strict=True)})
    report = handed_over(subject, plan, DEMAND, some, tmp_path / "out")
    original, compressed = (report[block]["energy_mj"] for block in ("original", "compressed"))
    assert original == pytest.approx(table.original[2], rel=1e-5)
    assert compressed == pytest.approx(subject.measure(plan).cost[2], rel=1e-9)
    integer = "activation" in text
    alike = [
        [place for place, recipe in enumerate(menu) if same_shapes(recipe, integer and row > 0)]
        for row, menu in enumerate(table.recipes)
    ]
    priced = sum(table.cost[2, row, places[0], 0, 0] for row, places in enumerate(alike))
    assert compressed == pytest.approx(priced, rel=1e-5)
    assert (compressed < 0.5 * original) == integer


def test_the_report_says_where_its_figures_come_from(finished):
    report = finished.report
    assert report["validation"]["kind"] == "made up"
    assert report["validation"]["samples"] == 64
    assert report["validation"]["original_accuracy"] == 100.0
    assert report["validation"]["compressed_accuracy"] == finished.subject.measure(finished.plan).accuracy
    assert report["machine"]["processors"] >= 1
    assert report["versions"]["torch"] == torch.__version__


def test_the_report_says_that_stored_latencies_give_the_same_plan(finished):
    assert "ends with the same plan" in finished.report["timing"]["in_words"]


def test_the_report_says_how_far_measured_latencies_vary(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(
        latency, "_time_chain", lambda chain, *_: (0.5, 0.01 * len(chain[0].input_shape if chain else ()))
    )
    table, operations = LatencyTable(tmp_path / "latency.sqlite"), finished.subject.network.operations
    table.milliseconds(list(operations.values()), progress=False)
    found = _timing(SimpleNamespace(latency=table, network=finished.subject.network))
    assert (found["median_variation"], found["largest_variation"]) == (0.03, 0.03)
    assert "may end with another plan" in found["in_words"]
    assert "by over 3.0 %" in found["in_words"]


def test_parameters_and_macs_are_counted_after_the_cut(finished):
    """Half of the first layer's channels are gone, and so is what the second would have read."""
    before, after = finished.report["original"], finished.report["compressed"]
    assert before["macs"] == 64 * 16 * 27 + 16 * 24 * 144 + 24 * 5
    assert after["macs"] == 64 * 8 * 27 + 16 * 24 * 72 + 24 * 5
    assert after["parameters"] < before["parameters"]


def test_each_layer_names_its_recipe_and_its_price(finished):
    layers = {row["name"]: row for row in finished.report["layers"]}
    assert {name: layers[name]["recipe"] for name in PLAN} == {n: str(Recipe.parse(text)) for n, text in PLAN.items()}
    assert layers["head"]["unpriced"].startswith("not on the price list")
    assert "price" not in layers["head"]
    assert layers["conv2"]["note"] == "reads fewer channels than in the original"
    for row in layers.values():
        if "price" in row:
            assert 0 < row["price"]["storage"] <= 1.0
            assert row["price"]["estimated_accuracy_drop"] >= 0


def test_the_plan_can_be_applied_again(finished):
    assert Plan.load(finished.folder / "plan.yaml") == finished.plan
    lines = (finished.folder / "plan.yaml").read_text().splitlines()[-len(finished.plan) :]
    shares = [re.search(r"  # bytes (.*) -> (.*) %, ms (.*) -> .* %$", line).groups() for line in lines]
    assert sum(float(share[0]) for share in shares) == pytest.approx(100.0, abs=0.5)
    assert sum(float(share[2]) for share in shares) == pytest.approx(100.0, abs=0.5)
    assert sum(float(share[1]) for share in shares) < 100.0


def test_the_packed_file_knows_its_network(finished):
    assert read_metadata(finished.folder / "weights.safetensors") == {"model": "plain"}


@pytest.mark.usefixtures("unexported")
def test_a_broken_ceiling_is_said(finished, tmp_path):
    demand = Demand(50.0, max_storage=0.001)
    report = handed_over(finished.subject, finished.plan, demand, finished.test, tmp_path)
    assert not report["demand_met"]
    share = report["compressed"]["storage_bytes"] / report["original"]["storage_bytes"]
    assert report["violations"] == {"storage": pytest.approx(share - 0.001)}


def test_uniform_int8_is_on_every_layer(finished):
    recipes = set(map(str, uniform_plan(finished.subject).values()))
    assert recipes == {"uniform_quantization(bits=7) + activation_quantization"}


# Files that do not give what was scored: all is written all the same, and told


def failed(report):
    assert not report["demand_met"]
    return {check["name"]: check for check in report["checks"] if not check["passed"]}


def whole(folder):
    """Whether a folder is whole, and its report the one on disk in strict JSON."""

    def refuse(constant):
        raise ValueError(constant)

    report = json.loads((folder / "report.json").read_text(), parse_constant=refuse)
    return sorted(path.name for path in folder.iterdir()) == FILES, report


def test_every_check_is_told_with_what_was_measured(finished):
    checks = {check["name"]: check for check in finished.report["checks"]}
    assert all(check["passed"] for check in checks.values())
    same = checks["weights.safetensors gives the outputs that were scored"]
    assert 0 <= same["difference"] <= same["allowed"] < 1e-3
    reached = checks["model.onnx reaches the accuracy of the compressed network in torch"]
    assert reached["allowed"] >= 100 / len(finished.test)
    assert reached["difference"] <= reached["allowed"]
    assert finished.report["demand_met"]


@pytest.mark.parametrize("change", [1e-3, float("nan")])
@pytest.mark.usefixtures("unexported")
def test_a_packed_file_of_other_outputs_fails_a_check(change, finished, tmp_path, monkeypatch):

    def another(path, skeleton):
        model = load_packed(path, skeleton)
        with torch.no_grad():
            model.head.bias.add_(change)
        return model

    monkeypatch.setattr(files, "load_packed", another)
    report = handed_over(finished.subject, finished.plan, DEMAND, finished.test, tmp_path)
    (check,) = failed(report).values()
    assert "weights.safetensors gives other outputs" in check["problem"]
    assert check["difference"] == (None if change != change else pytest.approx(change, rel=0.1))
    assert whole(tmp_path) == (True, report)


def turn(logits, labels, count):
    """Makes the first right outputs wrong ones."""
    logits, labels = logits.clone(), labels[: len(logits)]
    right = (logits.argmax(1) == labels).nonzero().flatten()[:count]
    logits[right, (labels[right] + 1) % logits.shape[1]] = 1e3
    return logits


def test_the_accuracy_told_is_that_of_the_file(unexported, finished, tmp_path):
    """One that is a little worse than the network in torch, too little to fail a check; the demand sees it."""
    test = finished.test
    torch_accuracy = finished.report["compressed"]["torch_accuracy"]
    unexported.changed = lambda path, outputs: turn(outputs, test.labels, 1) if path.parent == tmp_path else outputs
    demand = Demand(100.0 - torch_accuracy + 1e-3)
    report = handed_over(finished.subject, finished.plan, demand, test, tmp_path)
    assert report["compressed"]["torch_accuracy"] == torch_accuracy
    assert report["compressed"]["accuracy"] == pytest.approx(torch_accuracy - 100 / len(test))
    assert all(check["passed"] for check in report["checks"])
    assert report["violations"] == {"accuracy_drop": pytest.approx(100 / len(test) - 1e-3)}


def test_the_other_rows_are_those_of_their_files(unexported, finished, tmp_path):
    test = finished.test
    unexported.changed = lambda path, outputs: outputs if path.parent == tmp_path else turn(outputs, test.labels, 3)
    report = handed_over(finished.subject, finished.plan, DEMAND, test, tmp_path)
    for name in ("original", "uniform_int8"):
        assert report[name]["accuracy"] == pytest.approx(report[name]["torch_accuracy"] - 300 / len(test))


def test_an_exported_file_of_another_accuracy_fails_a_check(unexported, finished, tmp_path):
    test = finished.test
    unexported.changed = lambda path, outputs: turn(outputs, test.labels, 40) if path.parent == tmp_path else outputs
    report = handed_over(finished.subject, finished.plan, DEMAND, test, tmp_path)
    (check,) = failed(report).values()
    assert "model.onnx reaches" in check["problem"]
    assert "40 of 150 items count differently" in check["problem"]
    assert check["difference"] == pytest.approx(4000 / 150)
    assert check["likely_cause"].startswith("graph optimisations of ONNX Runtime")
    assert report["compressed"]["accuracy"] == pytest.approx(report["compressed"]["torch_accuracy"] - 4000 / 150)
    assert whole(tmp_path) == (True, report)


def test_outputs_that_are_no_numbers_fail_a_check(unexported, finished, tmp_path):
    unexported.changed = lambda path, outputs: outputs / 0.0 if path.parent == tmp_path else outputs
    report = handed_over(finished.subject, finished.plan, DEMAND, finished.test, tmp_path)
    assert [check["difference"] for check in failed(report).values()] == [None]
    assert whole(tmp_path) == (True, report)


def test_a_file_that_the_runtime_refuses_is_handed_over_all_the_same(unexported, finished, tmp_path, monkeypatch):
    def refuse(path, outputs):
        if path.parent == tmp_path:
            raise ModelError("ONNX Runtime cannot load it: no kernel")
        return outputs

    unexported.changed = refuse
    report = handed_over(finished.subject, finished.plan, DEMAND, finished.test, tmp_path)
    assert [check["problem"] for check in failed(report).values()] == ["ONNX Runtime cannot load it: no kernel"]
    block = report["compressed"]
    assert (block["accuracy"], block["latency_ms"], report["score"]) == (None, None, None)
    assert block["torch_accuracy"] == finished.report["compressed"]["torch_accuracy"]
    assert report["original"]["latency_ms"] == 1.0
    assert whole(tmp_path) == (True, report)
    said = io.StringIO()
    show_report(report, Console(file=said, width=200))
    assert "check FAILED: compressed: model.onnx runs: ONNX Runtime cannot load it: no kernel" in said.getvalue()
    assert "NOT met" in said.getvalue()


def test_a_network_that_cannot_be_exported_leaves_the_other_files(unexported, finished, tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no symbolic function")

    monkeypatch.setattr(files, "export_onnx", refuse)
    report = handed_over(finished.subject, finished.plan, DEMAND, finished.test, tmp_path)
    assert {check["problem"] for check in failed(report).values()} == {"no symbolic function"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [name for name in FILES if "onnx" not in name]
    assert report["compressed"]["onnx_bytes"] is None
    assert report["checksums"].keys() == {"weights.safetensors"}


@pytest.mark.parametrize(
    ("here", "images", "told"), [(72.5, 2, False), (72.5, 3, True), (99.0, 1, False), (99.0, 2, True)]
)
def test_a_network_that_has_lost_much_may_differ_by_more(here, images, told):
    labels = torch.arange(150) % 5
    right = lambda logits: 100.0 * (logits.argmax(1) == labels)  # noqa: E731
    outputs = F.one_hot(labels, 5).float()
    wrong = round(150 * (1 - here / 100))
    outputs[:wrong] = outputs[:wrong].roll(1, 1)
    scores = [Score(float(each.mean()), each) for each in map(right, (outputs, turn(outputs, labels, images)))]
    checks = Checks()
    files.check_onnx(Path("model.onnx"), CLASSIFIER, *scores, lambda: scores[1], checks)
    assert checks.passed != told


def test_a_cause_that_cannot_be_found_out_throws_nothing_away():
    def failing():
        raise ModelError("no kernel without fusion")

    checks = Checks()
    checks.compare("the same", 2.0, 1.0, "points", "differs", failing)
    ((found,)) = checks.report()
    assert not checks.passed
    assert found["problem"] == "differs"
    assert found["likely_cause"] == "not found out, for looking for it failed: no kernel without fusion"


# Interrupted runs and full disks


@pytest.mark.parametrize("full", ["plan.yaml", "weights.safetensors", "report.json"])
@pytest.mark.usefixtures("unexported")
def test_a_full_disk_leaves_no_half_file_and_the_next_run_finishes(finished, tmp_path, monkeypatch, full):
    folder = tmp_path / "out"
    write = Path.write_bytes

    def writes(path, content):
        if full in path.name:
            write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", writes)
        with pytest.raises(OSError, match="No space left"):
            handed_over(finished.subject, finished.plan, DEMAND, finished.test, folder)
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    assert there <= {*FILES, UNFINISHED} - {full, "report.json"}
    assert UNFINISHED in there or not there
    check_folder(folder)
    handed_over(finished.subject, finished.plan, DEMAND, finished.test, folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES


@pytest.mark.usefixtures("unexported")
def test_a_run_stopped_in_the_middle_is_not_taken_for_a_finished_one(finished, tmp_path, monkeypatch):

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "export_onnx", stop)
        with pytest.raises(KeyboardInterrupt):
            handed_over(finished.subject, finished.plan, DEMAND, finished.test, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [UNFINISHED, "plan.yaml", "weights.safetensors"]
    check_folder(tmp_path)


# Folders


def test_a_folder_is_for_one_run_at_a_time(tmp_path):
    with claimed(tmp_path / "out"):
        with pytest.raises(ConfigurationError, match="another run is writing to"), claimed(tmp_path / "out"):
            pass
        (tmp_path / "out" / "report.json").touch()
    with pytest.raises(ConfigurationError, match="holds a finished run"), claimed(tmp_path / "out"):
        pass


def test_a_run_that_writes_nothing_leaves_nothing(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("new", "mine"):
        with pytest.raises(KeyboardInterrupt), claimed(tmp_path / name):
            raise KeyboardInterrupt
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_a_new_or_empty_folder_is_fine_and_left_as_it_is(tmp_path):
    check_folder(tmp_path)
    check_folder(tmp_path / "not" / "there" / "yet")
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_not_overwritten(finished):
    with pytest.raises(ConfigurationError, match="holds a finished run"):
        check_folder(finished.folder)


@pytest.mark.parametrize("name", ["notes.txt", "model.onnx", "plan.yaml"])
def test_other_files_are_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigurationError, match=f"holds other files \\({name}\\)"):
        check_folder(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigurationError, match="is a file; name a folder"):
            check_folder(path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(ConfigurationError, match="Permission denied; name another folder"):
        check_writable(tmp_path)
