"""The table of techniques: complete, honest about refusals, and it goes on where it stopped."""

import dataclasses
import sys

import pytest
import torch
from tiny_networks import Depthwise, Identity, build, images
from torch import nn

from plywise.compressors.errors import ConfigurationError, DataError, ModelError
from plywise.compressors.recipes.technique import Recipe, Stage, techniques
from plywise.compressors.structure.low_rank import LowRank
from plywise.env.network.network import Network
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.runtime import run_model
from plywise.env.subject import Subject
from plywise.env.task.samples import labelled
from plywise.experiments.studies import technique_table
from plywise.experiments.studies.technique_table import BARS, ORIGINAL
from plywise.experiments.workbench import contrasts
from plywise.experiments.workbench.contrasts import Made
from plywise.experiments.workbench.results_page import Page
from plywise.experiments.workbench.technique_rows import HALF_PRUNED, PAIRS, Bar, alone, one_of_each, plan_of


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLYWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield subject_of(Identity)


def subject_of(kind):
    model = build(kind)
    return Subject(model, samples(model, 48, 1), samples(model, 64, 3), kind.__name__)


def samples(model, count, seed):
    inputs = images(count, seed)
    with torch.no_grad():
        return labelled(inputs, model(inputs).argmax(1))


def test_every_technique_has_a_row():
    named = {technique.name for text in alone() for technique in Recipe.parse(text).techniques}
    assert named == set(techniques())
    assert len(set(alone())) == len(alone())
    short = one_of_each(alone())
    assert {t.name for text in short for t in Recipe.parse(text).techniques} == named
    assert len(short) < len(alone())


def test_there_are_ten_pairs():
    assert len(set(PAIRS)) == 10
    assert all(len(Recipe.parse(text).techniques) == 2 for text in PAIRS)


def test_what_is_asked_is_measured():
    rows = technique_table.rows()
    assert next(iter(rows)) == ORIGINAL
    for bar in BARS:
        assert bar.row in rows
        assert bar.against is None or bar.against in rows


def test_a_bar_is_a_drop_or_a_lead():
    accuracy = {"ours": 85.0, "theirs": 80.0}
    drop, lead = Bar("", "ours", 3.0), Bar("", "ours", 5.0, "theirs")
    assert drop.figure(accuracy, 88.0) == 3.0
    assert drop.met(3.0)
    assert not drop.met(3.1)
    assert lead.figure(accuracy, 88.0) == 5.0
    assert lead.met(5.0)
    assert not lead.met(4.9)


def test_structures_spare_both_ends_and_the_rest_of_a_recipe_stays():
    network = Network.of(build(Depthwise), images(4))
    plan, refused = plan_of(network, "low_rank(ratio=0.5, sides=input) + uniform_quantization(bits=4)")
    layers = [layer.name for layer in network.layers]
    for name in (layers[0], layers[-1]):
        assert str(plan[name]) == "uniform_quantization(bits=4)"
    left = [name for name in layers[1:-1] if plan[name] == Recipe()]
    assert refused == len(left) > 0
    assert all(plan[name].at(Stage.STRUCTURE) is not None for name in layers[1:-1] if name not in left)


def test_pruning_is_left_to_those_that_decide():
    network = Network.of(build(Depthwise), images(4))
    plan, _ = plan_of(network, f"{HALF_PRUNED} + uniform_quantization(bits=4)")
    for place, layer in enumerate(network.layers):
        prunes = plan[layer.name].at(Stage.STRUCTURE) is not None
        assert prunes == (layer.leads and 0 < place < len(network.layers) - 1)
        assert plan[layer.name].at(Stage.WEIGHTS) is not None


def test_a_run_goes_on_and_says_what_could_not_be_measured(subject, tmp_path):
    calls = []

    def make(subject, path):
        calls.append(path)
        return technique_table.compressed("uniform_quantization(bits=4)", subject, path)

    def refuse(subject, path):
        raise ConfigurationError("not here")

    test = samples(subject.network.model, 64, 5)
    original = {ORIGINAL: lambda *given: technique_table.compressed(ORIGINAL, *given)}
    found = technique_table.measured(subject, test, tmp_path, {**original, "ours": make, "theirs": refuse})
    assert found["theirs"] == "not here"
    assert found[ORIGINAL].accuracy == 100.0
    assert found[ORIGINAL].divergence == pytest.approx(0.0, abs=1e-7)
    assert found["ours"].divergence > 1e-6
    again = technique_table.measured(subject, test, tmp_path, {"ours": make})
    assert len(calls) == 1
    assert again["ours"] == found["ours"]
    assert found["ours"].made.storage_bytes < found[ORIGINAL].made.storage_bytes / 2
    timed = technique_table.timed(subject, found, tmp_path)
    assert timed["ours"].latency_ms > 0
    assert dataclasses.replace(timed["ours"], latency_ms=0.0, speed_up=1.0) == found["ours"]
    assert timed["theirs"] == "not here"


def test_bars_are_judged_by_accuracy_and_show_what_is_no_chance(monkeypatch):
    made = Made(100.0, 10, 1.0)
    figures = {ORIGINAL: (88.0, 0.0), "ours": (87.95, 5e-5), "theirs": (88.0, 3e-4)}
    bars = (Bar("no worse", "ours", 0.0, "theirs"), Bar("drop", "ours", 0.3), Bar("missing", "nobody", 0.0))
    monkeypatch.setattr(technique_table, "BARS", bars)
    page = Page("bars", "command", 0.0)
    technique_table._bars(page, {name: technique_table.Figures(*pair, made) for name, pair in figures.items()})
    assert "| no worse | ours against theirs | 0 | -0.05 | NO | 0.05 against 0.3 |" in page.markdown[-1]
    assert "| drop | ours | 0.3 | 0.05 | yes | 0.05 |" in page.markdown[-1]
    assert "| missing | nobody | 0 |  | not measured |  |" in page.markdown[-1]


def test_without_the_data_it_says_where_to_put_them(monkeypatch, tmp_path):
    monkeypatch.delenv("PLYWISE_DATA", raising=False)
    with pytest.raises(DataError, match="PLYWISE_DATA"):
        technique_table.main(tmp_path)


def test_recalibration_gives_the_statistics_of_the_inputs():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    inputs = images(64)
    contrasts.recalibrate(model, inputs)
    assert not model[1].training
    with torch.no_grad():
        outputs = model(inputs)
    assert torch.allclose(outputs.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(outputs.std((0, 2, 3)), torch.ones(4), atol=1e-2)


def test_plain_decompositions_have_our_shapes_and_leave_the_original_alone(subject, tmp_path):
    before = {name: value.clone() for name, value in subject.network.original.state_dict().items()}
    ours = technique_table.compressed("low_rank(ratio=0.5)", subject, tmp_path / "ours.onnx")
    plain = contrasts.plain_decomposition(LowRank(0.5))(subject, tmp_path / "plain.onnx")
    assert plain.macs == ours.macs < sum(subject.network.macs.values())
    assert all(torch.equal(before[name], value) for name, value in subject.network.original.state_dict().items())


def test_torch_pruning_is_held_to_the_macs_asked_for(subject, tmp_path):
    target = technique_table.compressed(HALF_PRUNED, subject, tmp_path / "ours.onnx").macs
    made = contrasts.torch_pruning(True, lambda _: target)(subject, tmp_path / "theirs.onnx")
    assert made.macs == pytest.approx(target, rel=0.2)
    assert run_model(tmp_path / "theirs.onnx", images(2)).isfinite().all()


def test_a_network_that_breaks_is_told(subject, monkeypatch):
    def broken(*arguments, **settings):
        raise RuntimeError("shapes\nmore")

    monkeypatch.setattr(contrasts.tp.pruner, "MagnitudePruner", broken)
    with pytest.raises(ModelError, match=r"does not run: shapes$"):
        contrasts.torch_pruning(True, lambda _: 1)(subject, None)


def test_the_static_quantiser_gives_nearly_the_same_outputs(subject, tmp_path):
    made = contrasts.static_quantiser(subject, tmp_path / "static.onnx")
    export_onnx(subject.network.model, subject.network.interface, tmp_path / "original.onnx")
    expected, found = (run_model(tmp_path / f"{name}.onnx", images(32, 9)) for name in ("original", "static"))
    assert made.storage_bytes == (tmp_path / "static.onnx").stat().st_size
    assert 0 < float((found - expected).abs().mean()) < 0.1 * float(expected.abs().mean())


def test_torchao_rounds_each_channel(subject, tmp_path):
    pytest.importorskip("torchao", reason="needs plywise[study]")
    bytes_of = {}
    for bits in (8, 4):
        bytes_of[bits] = contrasts.torchao_weights(bits)(subject, tmp_path / f"{bits}.onnx").storage_bytes
    weight = torch.randn(4, 32)
    rounded = contrasts._rounded(contrasts._torchao(), weight, 4)
    assert max(len(row.unique()) for row in rounded) <= 16
    assert float((rounded - weight).abs().max()) < 0.5
    assert bytes_of[4] < bytes_of[8]


def test_without_torchao_the_row_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ConfigurationError, match=r"plywise\[study\]"):
        contrasts._torchao()
