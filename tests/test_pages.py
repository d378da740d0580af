"""Pages of hand-overs and comparisons: filled, escaped, self-contained; what they say is what was found."""

import copy
import html
import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up_device import FakeLatency, samples
from tiny_networks import Plain, build
from torch_runtime import TorchRuntime

from plywise.__main__ import main
from plywise.agent.search.methods import SEARCH_METHODS
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.env.exact_evaluator import ExactEvaluator
from plywise.env.score.demand import Demand
from plywise.env.score.score import Demands, expected_scores
from plywise.env.score.surrogate import Surrogate
from plywise.env.subject import Subject
from plywise.experiments import compress_model
from plywise.experiments.commands import compare_runs
from plywise.experiments.commands.compression_settings import make_compression
from plywise.experiments.commands.reproducing import reproducing_command
from plywise.experiments.handover import handover
from plywise.experiments.handover.alternatives import Alternatives
from plywise.experiments.handover.handover import hand_over
from plywise.experiments.handover.report import Origin
from plywise.experiments.handover.run_folder import claimed
from plywise.experiments.pages import report_tables
from plywise.experiments.pages.charts import VARIABLES, Bar, Point, paired_bars, plans_against_cost
from plywise.experiments.pages.compare_page import compare_page
from plywise.experiments.pages.comparison import read_runs
from plywise.experiments.pages.report_page import report_page, write_report_page
from plywise.experiments.pages.usage import snippets

DEMAND = Demand(30.0, max_storage=0.3)
HOSTILE = "<script>alert('&amp;')</script>$x$"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "br"}


class Page(HTMLParser):
    """What a browser would see: tags in order, attributes, texts, and the rows of each table."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.tables, self._open = [], [], [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return "".join(self.texts)


def self_contained(text):
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("href", "src", "xlink:href", "srcset", "data")]
    assert all(value.startswith("#") for value in links)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text
    assert [value for _, value in page.attributes if value and "//" in value and "www.w3.org" not in value] == []
    return page


class Made:
    """A search on a tiny network and its hand-over, with the plans that were scored."""

    def __init__(self, place):
        model = build(Plain)
        self.subject = Subject(model, samples(model, 48, 1), samples(model, 64, 3), "plain", FakeLatency())
        self.test = samples(model, 60, 5)
        evaluator = ExactEvaluator(self.subject, DEMAND)
        self.result = SEARCH_METHODS["knapsack"].search(evaluator, 3, 0, from_uniform=True)
        self.uniform = evaluator.evaluations - self.result.evaluations
        self.origin = Origin(
            "net.py:make",
            "folder:x",
            0,
            "knapsack",
            evaluator.evaluations,
            0.0,
            "made up",
            uniform=self.subject.plan(self.result.uniform),
            uniform_evaluations=self.uniform,
            scored=self.result.scored,
            architecture="net.py:make",
            classes=("cat", "dog"),
            command="plywise compress --model net.py:make",
        )
        self.folder = place / "made"
        self.report = self.handed_over(self.folder)

    def handed_over(self, folder):
        plan = self.subject.plan(self.result.actions)
        with claimed(folder):
            return hand_over(self.subject, plan, DEMAND, self.test, folder, self.origin)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLYWISE_CACHE", str(place / "cache"))
        TorchRuntime(patch)
        patch.setattr(handover, "write_report_page", write_report_page)
        yield Made(place)


@pytest.fixture
def other(made, tmp_path):
    """A second folder: one layer has another recipe, and a little more is lost."""
    report = json.loads((made.folder / "report.json").read_text())
    report["layers"][1]["recipe"] = "uniform_quantization(bits=6)"
    report["compressed"]["accuracy"] -= 1.0
    report["compressed"]["storage_bytes"] += 100
    return written(report, tmp_path / "other")


def written(report, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


# The page of a hand-over


def test_the_hand_over_holds_the_page_of_its_report(made):
    on_disk = json.loads((made.folder / "report.json").read_text())
    assert (made.folder / "report.html").read_text() == report_page(on_disk, made.folder)


def test_every_table_is_filled_and_nothing_comes_from_elsewhere(made):
    page = self_contained((made.folder / "report.html").read_text())
    assert len(page.tables) >= 7
    for rows in page.tables:
        width = max(map(len, rows))
        assert len(rows) >= 2 or width == 2
        assert all(any(cell.strip() for cell in row) for row in rows)
    assert page.tags.count("svg") == 5
    for row in made.report["layers"]:
        assert row["recipe"] in page.text
        assert row["runner_up"] is None or row["runner_up"]["recipe"] in page.text
    for said in ("Demand met", made.report["command"], "cat, dog", "net.py:make", f"seed{made.report['seed']}"):
        assert said in page.text


def test_hostile_names_are_only_text(made):
    report = copy.deepcopy(made.report)
    report |= {"model": HOSTILE, "data": HOSTILE, "method": HOSTILE, "warnings": [HOSTILE], "notes": [HOSTILE]}
    report |= {"classes": [HOSTILE], "command": HOSTILE, "architecture": HOSTILE}
    report["metric"]["name"] = report["device"]["name"] = report["uniform"]["recipe"] = HOSTILE
    report["checks"].append({**report["checks"][0], "passed": False, "problem": HOSTILE, "likely_cause": HOSTILE})
    for row in report["layers"]:
        row |= {"name": HOSTILE, "recipe": HOSTILE, "note": HOSTILE, "not_pruned": HOSTILE, "type": HOSTILE}
    report["interface"]["inputs"][0]["name"] = report["interface"]["outputs"][0] = HOSTILE
    page = self_contained(report_page(report, Path(HOSTILE)))
    assert page.text.count("<script>") >= 20
    runs = [written(report, made.folder.parent / name) for name in ("hostile", "<b>hostile")]
    page = self_contained(compare_page(read_runs(runs)))
    assert "<b>hostile" in page.text


def test_a_broken_demand_and_what_could_not_be_measured_are_shown(made):
    report = copy.deepcopy(made.report)
    report |= {
        "demand_met": False,
        "violations": {"storage": 0.25, "latency": None},
        "recovery": {"recover": "distill"},
    }
    for block in ("original", "compressed"):
        report[block] |= {"accuracy": None, "latency_ms": None, "latency_quartiles_ms": None, "onnx_bytes": None}
    report["search"]["scored"] = [{**report["search"]["scored"][0], "accuracy_drop": None, "chosen": False}]
    for row in report["layers"]:
        row["runner_up"] = None
        row["costs"]["after"]["latency_ms"] = None
    page = self_contained(report_page(report, made.folder))
    assert "NOT met: beyond the ceiling of storage by 0.25 of the original, latency, which could not" in page.text
    assert "✗ broken" in page.text
    assert "onnxruntime.InferenceSession" not in page.text


def test_a_page_that_cannot_be_made_loses_nothing(made, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError("no space left")

    TorchRuntime(monkeypatch)
    monkeypatch.setattr(handover, "write_report_page", fail)
    report = made.handed_over(tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["model.onnx", "model.onnx.xz", "plan.yaml", "report.json", "weights.safetensors"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert "report.html could not be written (no space left)" in capsys.readouterr().err


def test_charts_take_the_colours_of_the_page():
    bars = [Bar(f"the.layer{place:02}.with_a_long_name.conv", 100.0 - place, 10.0) for place in range(60)]
    drawn = paired_bars(bars, "bytes")
    assert [f"…r{place:02}.with_a_long_name.conv" in drawn for place in (0, 39, 40, 59)] == [True, True, False, False]
    point = Point(0.5, 1.0, 0.2)
    drawn += plans_against_cost([point], [point], point, [point, Point(0.2, 8.0, 1.0)], "storage", (0.3, 1.0))
    assert not any(stand_in in drawn for stand_in in VARIABLES)
    assert "var(--compressed)" in drawn


@pytest.mark.parametrize(
    ("given", "call"),
    [(None, "plywise.load('out', model)"), ("zoo:x", "plywise.load('out')"), ("a.b:c", "plywise.load('out', 'a.b:c')")],
)
def test_the_code_to_use_it_names_the_real_inputs(made, given, call):
    report = made.report | {"architecture": given}
    report["interface"] = {
        "inputs": [
            {"name": "ids", "shape": ["batch", 16], "type": "int64"},
            {"name": "mask", "shape": ["batch"], "type": "bool"},
        ],
        "outputs": ["output", "0"],
        "called": "keywords",
    }
    code = snippets(report, Path("out"))
    assert call in code["PyTorch"]
    assert "network(**inputs)" in code["PyTorch"]
    assert "torch.zeros((1, 16), dtype=torch.int64)" in code["PyTorch"]
    assert "{'ids': numpy.zeros((1, 16), numpy.int64), 'mask': numpy.zeros((1,), numpy.bool_)}" in code["ONNX Runtime"]
    assert "[output, output_1] = " in code["OpenVINO"]
    for text in code.values():
        assert len(text.splitlines()) <= 6
        compile(text, "snippet", "exec")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_nothing_overflows_in_a_browser(made, other, tmp_path):
    """Frames of 400 and 1,400 pixels: no page is wider than its frame, and the console stays empty."""
    pages = [(made.folder / "report.html").read_text(), compare_page(read_runs([made.folder, other]))]
    frames = "".join(
        f'<iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{html.escape(page)}"></iframe>'
        for width in (400, 1400)
        for page in pages
    )
    script = (
        "onload = () => { document.title = [...document.querySelectorAll('iframe')].map(f => "
        "(e => e.scrollWidth - e.clientWidth)(f.contentDocument.documentElement) + ':' + "
        "f.contentDocument.querySelectorAll('tbody tr').length).join(' ') }"
    )
    (tmp_path / "frames.html").write_text(f"<title>none</title>{frames}<script>{script}</script>")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    more = [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=2000"]
    command = [BROWSER, *flags.split(), *more, "--dump-dom", (tmp_path / "frames.html").as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    title = re.search("<title>(.*?)</title>", ran.stdout)[1]
    found = [tuple(map(int, each.split(":"))) for each in title.split()]
    assert [over for over, _ in found] == [0, 0, 0, 0]
    assert all(rows > 10 for _, rows in found)
    assert "CONSOLE" not in ran.stderr


# What the report says of what else there was


def test_all_scored_plans_are_told_with_the_estimates_from_before(made):
    rows, table = made.report["search"]["scored"], made.subject.price()
    assert [row["kind"] for row in rows].count("uniform") == made.uniform
    assert len(rows) == made.report["evaluations"]
    surrogate = Surrogate(table)
    for row, (slots, outcome) in zip(rows, made.result.scored, strict=True):
        _, (drop,), (spread,) = surrogate.estimate(np.array([slots]))
        assert (row["estimated"]["accuracy_drop"], row["estimated"]["spread"]) == (drop, spread)
        assert (row["accuracy_drop"], row["storage"]) == (outcome.drop, outcome.ratios[0])
        surrogate.observe(slots, outcome.drop, outcome.seen)
    (chosen,) = (row for row in rows if row["chosen"])
    assert chosen["score"] == made.result.outcome.score


def test_the_runner_up_is_the_best_other_recipe(made):
    table, actions = made.subject.price(), made.result.actions
    surrogate = Surrogate(table)
    for slots, outcome in made.result.scored:
        surrogate.observe(slots, outcome.drop, outcome.seen)

    def estimated(plan):
        ratios, drops, spreads = surrogate.estimate(np.array([plan]))
        return ratios[0], drops[0], expected_scores(Demands.of([DEMAND]), ratios, drops, spreads)[0]

    before = estimated(actions)
    for layer, row in enumerate(made.report["layers"]):
        others = [slot for slot in np.flatnonzero(table.legal[layer]) if slot != actions[layer]]
        plans = [(*actions[:layer], slot, *actions[layer + 1 :]) for slot in others]
        after = [estimated(plan) for plan in plans]
        differs = [abs(each[1] - before[1]) > 1e-6 or abs(each[0] - before[0]).max() > 1e-6 for each in after]
        best = max((place for place in range(len(plans)) if differs[place]), key=lambda place: after[place][2])
        told = row["runner_up"]
        assert told["recipe"] == table.recipes[layer][others[best]]
        assert told["score"] == pytest.approx(after[best][2] - before[2], abs=1e-9)
        assert told["storage"] == pytest.approx(after[best][0][0] - before[0][0], abs=1e-9)
        assert told["accuracy_drop"] == pytest.approx(after[best][1] - before[1], abs=1e-9)


def test_a_given_plan_is_its_own_only_one(made):
    plan = made.subject.plan(made.result.actions)
    others = Alternatives(made.subject, plan, DEMAND, (), 0)
    assert [(row["kind"], row["chosen"]) for row in others.scored] == [("given", True)]
    assert others.runner_up(0) is not None
    off = Plan("plain", {**plan, "head": Recipe.parse("step_quantization(step=0.9)")})
    others = Alternatives(made.subject, off, DEMAND, (), 0)
    assert others.runner_up(0) is None
    assert "estimated" not in others.scored[0]


def test_bytes_by_layer_and_the_rest_make_the_file(made):
    report = made.report
    for when, block in (("before", "original"), ("after", "compressed")):
        each = [row["costs"][when]["storage_bytes"] for row in report_tables.layers(report)]
        rest = report_tables.remainder(report, "storage_bytes", when, block)
        assert sum(each) + rest == report[block]["storage_bytes"]
        assert 0 < rest < 2000
        assert sum(row["costs"][when]["macs"] for row in report["layers"]) == report[block]["macs"]


def test_the_front_holds_nothing_that_another_plan_beats(made):
    rows = made.report["search"]["estimated_front"]
    costs = np.array([[row["accuracy_drop"], row["storage"], row["latency"], row["energy"]] for row in rows])
    assert len(rows) >= 2
    assert not any(((costs <= each).all(1) & (costs < each).any(1)).any() for each in costs)


IMAGES = {"mean": "0.4,0.5,0.6", "std": "0.2,0.31234567,0.3", "size": "224x320", "crop": 0.9, "channels": "bgr"}


@pytest.mark.parametrize(
    "options",
    [
        {"model": "zoo:digits-resnet-a", "data": "digits", "method": "knapsack", "max_storage": 0.15},
        {"model": "my net.py:make", "task": "t.py:make", "agent": "runs/a b", "max_accuracy_drop": None, "seed": 3},
        {"model": "digits-mlp", "data": "digits", "plan": "p.yaml", **IMAGES, "ignored": "a*,b"},
        {
            "model": "digits-mlp",
            "data": "digits",
            "method": "greedy",
            "recover": "distill",
            "epochs": 2,
            "repair": "means",
        },
        {"model": "digits-mlp", "data": "digits", "method": "greedy", "incremental": True, "recover": "finetune"},
        {"model": "digits-mlp", "data": "digits", "method": "greedy", "device": "here:4", "repair": "none"},
    ],
)
def test_the_command_asks_for_the_same_again(monkeypatch, options, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text("plywise: plan/1\npatterns: {'*': identity}\n")
    caught = []

    def compress(settings, out):
        caught.append((settings, out))
        return {"demand_met": True}

    monkeypatch.setattr(compress_model, "compress_model", compress)
    monkeypatch.setattr(compress_model, "show_report", lambda report: None)
    settings = make_compression(options)
    words = shlex.split(reproducing_command(settings, tmp_path / "a b"))
    assert words[0] == "plywise"
    main(words[1:])
    assert caught == [(settings, tmp_path / "a b")]


def test_what_was_asked_in_python_is_asked_in_python_again():
    settings = make_compression({"model": build(Plain), "data": "digits", "limits": {"drop": 0.5}, "method": "greedy"})
    found = reproducing_command(settings, Path("out"))
    assert found.startswith("plywise.compress(model, out='out', data='digits', method='greedy', ")
    assert "limits={'drop': 0.5}" in found
    compile(found, "command", "eval")


# plywise compare


def compared(capsys, *arguments):
    main(["compare", *map(str, arguments)])
    return capsys.readouterr().out


def test_runs_are_compared_in_80_plain_columns(made, other, capsys):
    out = compared(capsys, made.folder, other)
    table = out[out.index("compressed (* best)") : out.index("note:")]
    assert all(len(line) <= 80 for line in table.splitlines())
    assert not re.search(r"[─━│┃\x1b]", out)
    bytes_of = [json.loads((each / "report.json").read_text())["compressed"] for each in (made.folder, other)]
    assert re.search(rf"weights.safetensors, bytes +{bytes_of[0]['storage_bytes']:,} \* +", out)
    for row in made.report["layers"]:
        assert row["name"] in out
    assert "A B" in out


def test_changes_are_the_layers_that_differ(made, other, capsys):
    out = compared(capsys, made.folder, other, "--changes")
    names = [row["name"] for row in made.report["layers"]]
    assert [name for name in names if re.search(rf"^{name} ", out, re.MULTILINE)] == [names[1]]
    assert "uniform_quantization(bits=6)" in out
    assert "all layers have the same recipe" in compared(capsys, "--changes", made.folder, made.folder)


def test_the_comparison_as_json_and_as_a_page(made, other, tmp_path, capsys):
    page = tmp_path / "compared.html"
    found = json.loads(compared(capsys, made.folder, "--json", other, "--page", page))
    assert [run["letter"] for run in found["runs"]] == ["A", "B"]
    assert found["runs"][1]["compressed"]["accuracy"] == found["runs"][0]["compressed"]["accuracy"] - 1.0
    assert [row["differs"] for row in found["layers"]] == [place == 1 for place in range(len(found["layers"]))]
    shown = self_contained(page.read_text())
    assert len(shown.tables) == 4
    assert all(len(rows) > 1 for rows in shown.tables)


def test_what_does_not_compare_is_said(made, tmp_path, capsys):
    report = copy.deepcopy(made.report)
    report |= {"model": "another [red]net", "data": "folder:y"}
    report["layers"] = report["layers"][:1]
    report["metric"]["name"] = "f1"
    out = compared(capsys, made.folder, written(report, tmp_path / "another"))
    for said in ("different networks: A net.py:make, B another [red]net", "different data", "different metrics"):
        assert said in out
    assert "not in this network" in out


def test_folders_that_cannot_be_compared_are_refused(made, tmp_path, capsys):
    def refused(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main(["compare", *map(str, arguments)])
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "given 1 folder and takes 2" in refused(made.folder)
    assert "missing: --runs" in refused()
    (tmp_path / "empty").mkdir()
    assert "holds no finished run" in refused(made.folder, tmp_path / "empty")
    (tmp_path / "empty" / "UNFINISHED").write_text("")
    assert "holds an unfinished run" in refused(made.folder, tmp_path / "empty")
    old = {name: value for name, value in made.report.items() if name != "metric"}
    assert "lacks metric" in refused(made.folder, written(old, tmp_path / "old"))
    assert "must be a file in a folder that is there" in refused(made.folder, made.folder, "--page", tmp_path / "a/b")
    assert "unknown option --pages" in refused(made.folder, made.folder, "--pages", "x")


def test_many_runs_come_in_several_tables(made, capsys):
    out = compared(capsys, *[made.folder] * 6)
    assert out.count("compressed (* best)") == 2
    assert compare_runs.COLUMNS < 6
