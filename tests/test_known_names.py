"""Names that are checked before torch is imported, and the words of a command line."""

import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

from plywise.agent.search.agent_search import AgentSearch
from plywise.agent.search.methods import SEARCH_METHODS
from plywise.compressors.errors import ConfigurationError
from plywise.compressors.recipes.technique import techniques
from plywise.experiments.commands import listings
from plywise.experiments.commands.profile_model import show_profile
from plywise.experiments.console import known_names
from plywise.experiments.console.arguments import parsed_form
from plywise.experiments.console.output import show_result, shown
from plywise.experiments.data.datasets import READERS
from plywise.experiments.networks.zoo import ZOO


def test_the_names_are_those_of_the_registries():
    assert set(known_names.NETWORKS) == set(ZOO)
    assert set(known_names.METHODS) == set(SEARCH_METHODS)
    assert AgentSearch.name == known_names.AGENT
    assert set(known_names.DATASETS) == {"digits", *READERS}
    assert set(known_names.LISTS) == set(listings.LISTS)
    ours = {name for name, kind in techniques().items() if kind.__module__.startswith("plywise.")}
    assert known_names.technique_names() == {"identity", *ours}


def test_mistyped_names_are_told_without_torch(tmp_path):
    (tmp_path / "plan.yaml").write_text("plywise: plan/1\npatterns: {'*': low_rnk(ratio=0.5)}\n")
    given = ["--model", "digits-mlp", "--data", "digits", "--out", "x"]
    wrong = {
        "unknown network 'digits-mlq'": ["profile", "--model", "zoo:digits-mlq"],
        "unknown method 'knapsac'": ["compress", *given, "--method", "knapsac"],
        "unknown device 'raspberry-pi-44'": ["compress", *given, "--device", "raspberry-pi-44"],
        "pattern *: unknown technique 'low_rnk'. Did you mean 'low_rank'": ["compress", *given, "--plan", "plan.yaml"],
        "unknown technique 'low_rnk'": ["list", "techniques", "low_rnk"],
        "unknown list 'device'": ["list", "device"],
        "unknown network 'resnet21'": ["train", "--networks", "resnet21"],
    }
    code = (
        "import sys\nfrom plywise.__main__ import main\n"
        f"for words in {list(wrong.values())!r}:\n"
        "    try: main(words)\n    except SystemExit as ended: assert ended.code == 2\n"
        "assert 'torch' not in sys.modules and 'onnxruntime' not in sys.modules"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=path
    )
    assert found.returncode == 0, found.stderr
    lines = found.stderr.splitlines()
    assert len(lines) == len(wrong)
    for line, said in zip(lines, wrong, strict=True):
        assert said in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("list", "list"),
        ("list devices", "list --what=devices"),
        ("list techniques low_rank --json", "list --json=true --what=techniques --name=low_rank"),
        ("compare a b --changes", 'compare --changes=true --runs=["a", "b"]'),
        ("compare --json false a", 'compare --json=false --runs=["a"]'),
        ("compress --max-storage 0.1 --quiet --out x", "compress --max_storage=0.1 --quiet=true --out=x"),
        ("compress --plan a.yaml --plan=b.yaml", 'compress --plan=["a.yaml", "b.yaml"]'),
        ("compress --from x --knee", "compress --front=x --knee=true"),
        ("compress --out --seed 3", "compress --out --seed=3"),
        ("compress stray --seed -1", "compress stray --seed=-1"),
        ("compress --plan-x --help", "compress --plan_x --help"),
    ],
)
def test_the_words_of_a_command_line_become_options(words, expected):
    assert " ".join(parsed_form(words.split())) == expected


# Lists and figures


class Screen(Console):
    """A terminal of 80 columns."""

    def __init__(self, **settings):
        super().__init__(width=80, force_terminal=True, color_system=None, **settings)


@pytest.mark.parametrize("what", listings.LISTS)
def test_lists_have_a_line_each_with_the_whole_name(what, capsys, monkeypatch):
    entries = listings.LISTS[what]()
    for terminal in (False, True):
        if terminal:
            monkeypatch.setattr(listings, "Console", Screen)
        listings.show_list(what)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= len(entries) + len({entry.kind for entry in entries}) + 1
        starts = [line.split()[0] for line in lines]
        assert all(entry.name in starts for entry in entries)
        assert not terminal or max(map(len, lines)) <= 80


def test_one_of_a_list_is_explained_by_name(capsys):
    listings.show_list("techniques", "low_rank")
    shown = " ".join(capsys.readouterr().out.split())
    assert "ratio: share of the macs that remains; 0.5 where not given; tried: 0.6, 0.4, 0.25" in shown
    assert "Speeding up CNNs" in shown
    with pytest.raises(ConfigurationError, match=r"unknown network 'digits-mpl'\. Did you mean 'digits-mlp'"):
        listings.show_list("networks", "digits-mpl")


def test_lists_as_json(capsys):
    listings.show_list("devices", "raspberry-pi-4", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == "raspberry-pi-4"
    assert "watts" in found["details"]
    listings.show_list("methods", as_json=True)
    assert {each["name"] for each in json.loads(capsys.readouterr().out)} == {"ppo", *SEARCH_METHODS}


@pytest.mark.parametrize("terminal", [True, False])
def test_a_profile_cuts_no_name(terminal, capsys):
    long = "encoder.blocks.11.attention.self.query.projection_of_a_very_long_name_that_fills_a_line"
    figures = {"input": [3, 224, 224], "output": [64, 112, 112], "macs": 118_013_952, "weights": 9_408}
    layer = {**figures, "fp32_ms": 0.5, "int8_ms": 0.25, "legal": 85, "offered": None, "reason": None}
    rows = [{**layer, "name": name, "channels": "decides"} for name in ("stem", "blocks.0.attention.query", long)]
    rows[1] |= {"channels": "fixed", "reason": "its channels are the network's outputs"}
    found = {
        "model": "m",
        "device": "d",
        "latency": "l",
        "priced": False,
        "catalogue": 85,
        "skipped": {},
        "layers": rows,
    }
    show_profile(found | {"layers": rows}, Screen() if terminal else Console())
    lines = capsys.readouterr().out.splitlines()
    starts = [line.split()[0] for line in lines if line]
    assert {"stem", "blocks.0.attention.query", long} <= set(starts)
    assert "fixed: blocks.0.attention.query: its channels are the network's outputs" in lines
    assert not terminal or max(len(line) for line in lines if line != long) <= 80
    assert "118M" in lines[2]


# What is shown


def test_quiet_shows_results_only(capsys):
    with shown(quiet=True, as_json=False):
        print("note", file=sys.stderr)
    show_result({}, False, lambda: print("result"))
    assert capsys.readouterr() == ("result\n", "")


def test_json_leaves_standard_output_to_one_document(capfd):
    with shown(quiet=False, as_json=True):
        print("a table")
        os.write(1, b"a solver\n")
    show_result({"a": 1}, True, lambda: print("table"))
    out, err = capfd.readouterr()
    assert json.loads(out) == {"a": 1}
    assert sorted(err.splitlines()) == ["a solver", "a table"]


def test_errors_pass_through_quiet(capsys):
    with pytest.raises(ConfigurationError), shown(quiet=True, as_json=True):
        raise ConfigurationError("wrong")
    print("seen", file=sys.stderr)
    assert capsys.readouterr().err == "seen\n"
