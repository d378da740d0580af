"""Networks of users: modules in memory, data of any form, metrics of their own, or none."""

import json

import pytest
import torch
from made_up_device import FakeLatency
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import plywise
from plywise.compressors.errors import ConfigurationError, DataError, ModelError
from plywise.env.task.binding import bind
from plywise.env.task.task import Task
from plywise.experiments import compress_model
from plywise.experiments.compress_model import show_report

FEATURES, CLASSES = 12, 3


class TwoInputs(nn.Module):
    """Takes columns and optional weights of them; puts out a dictionary."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 48), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(48, CLASSES)

    def forward(self, columns, weights=None, labels=None):
        assert labels is None
        hidden = self.body(columns if weights is None else columns * weights)
        return {"logits": self.head(hidden), "hidden": [hidden]}


def made(seed=0):
    torch.manual_seed(seed)
    return TwoInputs()


def items(count, seed):
    """Dictionaries of one item each, labelled by the network."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(count, FEATURES, generator=generator)
    weights = torch.rand(count, FEATURES, generator=generator)
    labels = made().eval()(columns, weights)["logits"].argmax(1)
    return [{"columns": c, "weights": w, "labels": y} for c, w, y in zip(columns, weights, labels, strict=True)]


def loader(count, seed, size=32):
    return DataLoader(items(count, seed), size)


def right(model, batches):
    found = [100.0 * (model(b["columns"], b["weights"])["logits"].argmax(1) == b["labels"]) for b in batches]
    values = torch.cat(found)
    return float(values.mean()), values


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """A device that nothing is timed on, and a cache of the test's own."""
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compress_model, "open_device", lambda name: FakeLatency())


def compress(out, *args, **options):
    return plywise.compress(*args, out=out, method="knapsack", evaluations=2, **options)


def test_a_module_with_dictionaries_and_a_metric_of_its_own(tmp_path, capsys):
    network = made().train()
    network.head.weight.requires_grad_(False)
    seen = []
    network.body.register_forward_hook(lambda *_: seen.append(1))
    options = {
        "validation": loader(128, 2),
        "test": loader(96, 3),
        "metric": right,
        "limits": {"drop": 4.0, "storage": 0.45},
    }
    report = compress(tmp_path / "out", network, loader(160, 1), **options)
    assert report["demand_met"], report["violations"]
    assert all(check["passed"] for check in report["checks"])
    assert report["metric"] == {"name": "right", "unit": "%", "point": 1.0, "agreement": False}
    assert report["original"]["accuracy"] == 100.0
    assert report["validation"]["samples"] == 128
    assert (report["model"], report["data"], report["notes"]) == ("TwoInputs", "own data", [])
    assert network.training
    assert network.body.training
    assert not network.head.weight.requires_grad
    assert network.body._forward_hooks
    smaller = plywise.load(tmp_path / "out", made())
    batch = next(iter(loader(8, 4)))
    assert smaller(batch["columns"], batch["weights"])["logits"].shape == (8, CLASSES)
    show_report(report)
    assert "right of model.onnx" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "report.json").read_text())["metric"]["name"] == "right"


def test_without_metric_labels_and_other_data_the_original_is_the_reference(tmp_path, capsys):
    batches = [batch["columns"] for batch in loader(320, 1)]
    report = compress(tmp_path / "out", made(), batches, limits={"drop": 5.0, "storage": 0.45}, ignored=("head*",))
    assert report["demand_met"]
    assert report["metric"]["agreement"]
    assert report["original"]["accuracy"] == 100.0
    assert 80 < report["compressed"]["accuracy"] <= 100
    assert [row["note"] for row in report["layers"] if row["name"] == "head"] == ["left as it is, as asked"]
    said = capsys.readouterr().err
    assert "160 items are held out of the calibration data" in said
    assert "no metric was given: the original is the reference" in said
    assert report["notes"] == [line.removeprefix("note: ") for line in said.splitlines() if line.startswith("note: ")]


class Curve(nn.Module):
    """Regression of one number; double precision."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, x):
        return self.body(x)[:, 0]


def test_a_plain_number_lower_limits_in_its_unit_and_training_by_distillation(tmp_path, capsys):
    torch.manual_seed(0)
    network = Curve().double()
    x = torch.randn(256, 4, dtype=torch.float64)
    batches = list(zip(x.split(32), network(x).detach().split(32), strict=True))

    def closeness(model, given):
        return -float(torch.cat([(model(a) - b).square() for a, b in given]).mean()) - 0.5

    task = Task(batches, metric=closeness, unit="mse", forward_step=lambda model, batch: model(batch[0]))
    options = {"limits": {"drop": 0.05, "storage": 0.45}, "recover": "distill", "epochs": 2}
    report = compress(tmp_path / "out", network, task, **options)
    assert report["metric"] == {"name": "closeness", "unit": "mse", "point": pytest.approx(0.005), "agreement": False}
    assert report["demand"]["max_accuracy_drop"] == pytest.approx(10.0)
    assert report["original"]["accuracy"] == pytest.approx(-0.5, abs=1e-4)
    assert report["compressed"]["accuracy"] > -0.55
    assert report["recovery"]["recover"] == "distill"
    said = capsys.readouterr().err
    assert "studied and handed over in float32; the network is in float64" in said
    assert "the metric gives a plain number: no plan is stopped early" in said


def test_a_task_may_come_from_a_file_and_its_folder_is_measured_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main = pytest.importorskip("plywise.__main__").main
    main(["init", "--out", "mine.py"])
    with pytest.raises(SystemExit):
        main(["init", "--out", "mine.py"])
    assert "mine.py is there already" in capsys.readouterr().err
    asked = ["--model", "mine.py:make_model", "--task", "mine.py:make_task"]
    ceilings = ["--max-storage", "0.3", "--max-accuracy-drop", "5"]
    main(["compress", *asked, "--out", "out", "--method", "knapsack", "--evaluations", "1", *ceilings])
    assert "mine.py:make_model on mine.py:make_task" in capsys.readouterr().out
    main(["evaluate", "--folder", "out", "--model", "mine.py:make_model"])
    said = capsys.readouterr().out
    assert "metric in ONNX Runtime" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["task"] == "mine.py:make_task"


# Bad input


def bound(model=None, **parts):
    given = {"calibration": list(loader(64, 1)), "validation": list(loader(64, 2)), "metric": right, **parts}
    return bind(Task(**given), (model or made()).eval())


@pytest.mark.parametrize(
    ("parts", "error", "said"),
    [
        ({"calibration": (b for b in loader(64, 1))}, ConfigurationError, "can be read once only"),
        ({"calibration": torch.zeros(4, 12)}, ConfigurationError, "calibration is a Tensor and must be an iterable"),
        ({"validation": {"columns": torch.zeros(4, 12)}}, ConfigurationError, "validation is a dict"),
        ({"calibration": 3}, ConfigurationError, "calibration is a int"),
        ({"calibration": []}, DataError, "calibration is empty"),
        ({"validation": []}, DataError, "validation is empty"),
        ({"calibration": [["a", "b"]]}, DataError, "must hold tensors"),
        ({"metric": 3}, ConfigurationError, "metric is a int and must be a function"),
        ({"metric": lambda model, batches: [1, 2]}, ConfigurationError, "must return a number"),
        ({"unit": ""}, ConfigurationError, "unit='' must be a text"),
        ({"metric": None, "unit": "mIoU"}, ConfigurationError, "has no meaning without a metric"),
        ({"metric": lambda model, batches: 0.0, "unit": "x"}, ConfigurationError, "give Task.point="),
        ({"point": 0}, ConfigurationError, "point=0 must be a number above 0"),
        ({"loss": lambda outputs, batch: outputs["logits"]}, ConfigurationError, "the loss returns a tensor"),
        ({"loss": lambda outputs, batch: outputs[0]}, ConfigurationError, "the loss raises KeyError"),
        ({"distance": lambda a, b: torch.zeros(3)}, ConfigurationError, r"one value for each of the 32 items"),
        ({"distance": lambda a, b: -torch.ones(32)}, ConfigurationError, "it must be at least 0"),
        ({"calibration": [{"rows": torch.zeros(4, 12)}]}, ModelError, "requires columns"),
        ({"calibration": [{"columns": torch.zeros(4, 5)}]}, ModelError, r"columns: \(4, 5\) float32"),
        ({"forward_step": lambda model, batch: "text"}, ModelError, "no tensor of floats"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_used_is_told_before_anything_is_computed(parts, error, said):
    with pytest.raises(error, match=said):
        bound(**parts)


def test_the_first_layer_that_gives_no_numbers_is_named():
    model = made()
    with torch.no_grad():
        model.body[0].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"from the layer 'body\.0' on"):
        bound(model)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limits": {"size": 0.1}}, "unknown limit 'size'"),
        ({"limits": {"drop": -1}}, "limits\\['drop'\\]=-1"),
        ({"limits": {"storage": 2.0}}, "max_storage=2.0"),
        ({"limits": {"storage": 0.45}, "max_storage": 0.2}, "the same in limits"),
        ({"ignored": ("haed*",)}, "ignored='haed\\*' fits no module.*head"),
        ({"ignored": (nn.Conv2d,)}, "fits no module"),
        ({"ignored": (3,)}, r"ignored=\(3,\) is a tuple and must be a text or a type of layer"),
        ({"data": "digits"}, "calibration and data were given"),
        ({"weights": "x.pt"}, "leave out 'weights'"),
        ({"recover": "finetune"}, "needs a loss"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_options_are_told(options, said, tmp_path):
    with pytest.raises(ConfigurationError, match=said):
        compress(tmp_path / "out", made(), [batch["columns"] for batch in loader(64, 1)], **options)


def test_metrics_belong_to_data_and_a_folder_is_needed(tmp_path):
    with pytest.raises(ConfigurationError, match="metric belong to calibration data"):
        compress(tmp_path / "out", "zoo:digits-mlp", data="digits", metric=right)
    with pytest.raises(ConfigurationError, match="which folder shall be written"):
        compress("", made(), [torch.zeros(4, FEATURES)])
    with pytest.raises(ConfigurationError, match="which data is the network for"):
        compress(tmp_path / "out", made())


# Data


class Reshuffled:
    """Gives other batches each time that it is read."""

    def __init__(self):
        self.reads = 0

    def __iter__(self):
        self.reads += 1
        return iter(list(loader(128, self.reads)))


def test_data_that_do_not_fit_into_memory_must_be_the_same_each_time(monkeypatch):
    monkeypatch.setattr("plywise.env.task.reading.MOST_BYTES", 4000)
    with pytest.raises(DataError, match="validation gives other batches each time"):
        bound(validation=Reshuffled())
    found = bound(validation=loader(128, 2))
    assert not found.validation.held
    assert found.validation.score(made().eval()).value == 100.0


def test_a_part_of_the_calibration_data_is_held_out():
    found = bound(validation=None, calibration=list(loader(100, 1)))
    assert (len(found.calibration), len(found.validation), len(found.test)) == (50, 50, 50)
    first = next(iter(found.validation))["columns"]
    assert not any(torch.equal(first[0], row) for batch in found.calibration for row in batch["columns"])
    assert found.validation_kind == "held out of the calibration data"


def test_what_a_function_does_is_part_of_the_key():
    def other(model, batches):
        return right(model, batches)[0] * 1.0

    first, same, second = bound(), bound(), bound(metric=other)
    assert first.validation.digest() == same.validation.digest() != second.validation.digest()


def test_the_loss_of_a_task_trains(tmp_path):
    def loss(outputs, batch):
        return F.cross_entropy(outputs["logits"], batch["labels"])

    task = Task(loader(96, 1), loader(64, 2), metric=right, loss=loss)
    report = compress(
        tmp_path / "out", made(), task, recover="finetune", epochs=1, limits={"drop": 20, "storage": 0.45}
    )
    assert len(report["recovery"]["validation_accuracies"]) == 2
