"""The front of one network as a folder, and the plan of a point handed over."""

import csv
import json
from xml.etree import ElementTree

import pytest
import torch
from made_up_device import FakeLatency
from torch import nn

import plywise
from plywise.__main__ import main
from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.compressors.recipes.plan import Plan
from plywise.experiments import compress_model
from plywise.experiments.front import find_front
from plywise.experiments.front.front_folder import FrontFolder, Row
from plywise.experiments.front.picking import picked_options, saved_options

FEATURES, CLASSES = 8, 3
UNIFORM, SEARCHED = 5, 2


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, CLASSES)).eval()


def batches(network, seed):
    inputs = torch.randn(96, FEATURES, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return [(part, network(part).argmax(1)) for part in inputs.split(32)]


def right(model, data):
    values = torch.cat([100.0 * (model(inputs).argmax(1) == labels) for inputs, labels in data])
    return float(values.mean()), values


@pytest.fixture(scope="module")
def device():
    patch = pytest.MonkeyPatch()
    for module in (find_front, compress_model):
        patch.setattr(module, "open_device", lambda _: FakeLatency())
    yield
    patch.undo()


def run(network, out):
    data = {"validation": batches(network, 2), "metric": right}
    return plywise.pareto(network, batches(network, 1), out, **data, evaluations=SEARCHED)


@pytest.fixture(scope="module")
def made(network, device, tmp_path_factory):
    return run(network, tmp_path_factory.mktemp("front") / "run")


def test_a_folder_holds_table_picture_and_a_plan_for_each_point(made) -> None:
    rows = list(csv.DictReader((made.path / "front.csv").read_text().splitlines()))
    assert [int(row["number"]) for row in rows] == list(range(UNIFORM + SEARCHED))
    assert {row["found_by"] for row in rows[:UNIFORM]} == {"uniform"}
    assert not {row["found_by"] for row in rows[UNIFORM:]} & {"uniform", "given"}
    for row in rows:
        assert len(Plan.load(made.path / row["plan"])) == 2
        assert 0 < float(row["storage"]) < 1.5
    assert any(row["front"] == "True" for row in rows)
    assert ElementTree.parse(made.path / "front.svg").getroot().tag.endswith("svg")
    assert json.loads((made.path / "front.json").read_text())["finished"] is True
    page = (made.path / "front.html").read_text()
    assert page.count("<tr>") == 1 + len(made.shown)
    assert "search goes on" not in page
    assert "Rough:" not in page


def test_a_front_of_uniform_plans_says_that_it_is_rough(tmp_path) -> None:
    found = FrontFolder(tmp_path, {}, {}, 5.0)
    found.add(Row(0, "uniform", 0.0, 1, 1, 1, 1, 1, 1), Plan("lenet", {}))
    page = (tmp_path / "front.html").read_text()
    assert "Rough:" in page
    assert "search goes on" in page


def test_a_folder_is_read_again_as_it_was(made) -> None:
    again = FrontFolder.load(made.path)
    assert again.rows == made.rows
    assert again.front == made.front
    assert again.knee in again.front


def test_no_plan_beats_one_of_the_front(made) -> None:
    figures = {row.number: [row.drop, row.storage, row.latency, row.energy] for row in made.rows}
    for row in made.front:
        mine = figures[row.number]
        others = [other for other in figures.values() if other != mine]
        assert not any(all(a <= b for a, b in zip(other, mine, strict=True)) for other in others)


def test_a_run_that_is_started_again_comes_to_the_same(made, network) -> None:
    assert run(network, made.path).rows == made.rows


def test_a_point_is_handed_over(made, network, tmp_path) -> None:
    row = made.front[-1]
    data = {"validation": batches(network, 2), "metric": right}
    report = plywise.compress(network, batches(network, 1), tmp_path / "out", **data, front=made.path, pick=row.number)
    assert report["demand_met"]
    assert Plan.load(tmp_path / "out" / "plan.yaml").recipes == Plan.load(made.path / row.plan).recipes


@pytest.fixture
def folder(tmp_path):
    """A front that was made by hand."""
    found = FrontFolder(tmp_path, {"model": "zoo:lenet", "data": "digits", "seed": 3}, {}, 5.0)
    for number, (drop, share) in enumerate([(0.0, 0.5), (0.1, 0.2), (0.4, 0.1), (6.0, 0.05), (1.0, 0.3)]):
        found.add(Row(number, "knapsack", drop, share, share, share, 1e3 * share, share, share), Plan("lenet", {}))
    return found


def test_the_knee_is_picked_among_what_is_worth_looking_at(folder) -> None:
    assert [row.number for row in folder.front] == [0, 1, 2, 3]
    assert folder.knee.number == 1
    assert picked_options({}, folder.path, None, knee=True)["plan"] == folder.path / "plans/001.yaml"


def test_what_is_given_comes_before_what_the_front_says(folder) -> None:
    given = {"model": "zoo:other", "data": None, "max_accuracy_drop": 2.0}
    found = picked_options(given, folder.path, 1, knee=False)
    assert (found["model"], found["data"], found["seed"], found["max_accuracy_drop"]) == ("zoo:other", "digits", 3, 2.0)
    assert picked_options({"task": "file.py:make"}, folder.path, 1, knee=False).get("data") is None


@pytest.mark.parametrize(
    ("options", "pick", "knee", "message"),
    [
        ({}, None, False, "which plan of .*--pick N .0, 1, 2, 3. and --knee"),
        ({}, 1, True, "Give one of"),
        ({}, 77, False, "has no plan 77; its front is 0, 1, 2, 3"),
        ({"method": "knapsack"}, 1, False, "leave out --method"),
        ({"plan": "plan.yaml", "agent": "a"}, 1, False, "leave out --agent and --plan"),
    ],
)
def test_mistakes_of_picking(folder, options, pick, knee, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        picked_options(options, folder.path, pick, knee)


def test_a_front_of_losses_alone_has_no_knee(tmp_path) -> None:
    found = FrontFolder(tmp_path, {}, {}, 5.0, [Row(0, "uniform", 9.0, 1, 1, 1, 1, 1, 1)])
    with pytest.raises(ConfigurationError, match="loses at most 5 points"):
        found.picked(None)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"plywise": "front/9"}', '{"plywise": "plywise-front/1"}'])
def test_a_damaged_folder_is_told(tmp_path, content) -> None:
    (tmp_path / "front.json").write_text(content)
    with pytest.raises(FileFormatError, match="does not hold a front"):
        FrontFolder.load(tmp_path)


def test_only_what_can_be_written_is_kept_of_the_options(network, tmp_path) -> None:
    given = {"model": network, "task": object(), "weights": tmp_path, "seed": 2, "agent": "x", "mean": None}
    assert saved_options(given) == {"weights": str(tmp_path), "seed": 2}


def test_files_of_others_are_left_alone(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="holds other files"):
        find_front.check_same_front(tmp_path, {})


@pytest.mark.parametrize("most", [0.0, -1.0, 101.0])
def test_a_drop_that_makes_no_sense_is_refused(network, most, tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="max_drop"):
        plywise.pareto(network, batches(network, 1), tmp_path, max_drop=most)


def refused(capsys, *arguments: str) -> str:
    """Returns what a command says that ends with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_mistakes_on_the_command_line(folder, capsys, tmp_path) -> None:
    here, other = str(folder.path), str(tmp_path / "out")
    model = ("--model", "zoo:digits-mlp", "--data", "digits")
    told = refused(capsys, "pareto", *model, "--out", here, "--seed", "3")
    assert "holds the front of another run (model differ)" in told
    assert "which network" in refused(capsys, "compress", "--out", other, "--method", "knapsack")
    assert "--pick N (0, 1, 2, 3)" in refused(capsys, "compress", "--from", here, "--out", other)
