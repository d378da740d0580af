"""Weights of integer kernels: 8 bits where a processor sums their products in 32 bits, 7 elsewhere, and it is said."""

import dataclasses
import io

import pytest
from made_up_device import FakeLatency, samples
from rich.console import Console
from tiny_networks import Plain, build
from torch_runtime import TorchRuntime

from plywise.compressors.errors import ConfigurationError
from plywise.env.costs.device import Device
from plywise.env.costs.devices import open_device
from plywise.env.costs.roofline import Roofline
from plywise.env.network.scheme import Scheme
from plywise.env.runtime import target_program
from plywise.env.runtime.integer_kernels import weight_bits
from plywise.env.runtime.target_program import CUDA
from plywise.env.score.demand import Demand
from plywise.env.subject import Subject
from plywise.experiments.compress_model import check_weights_run, show_report
from plywise.experiments.handover.handover import hand_over
from plywise.experiments.handover.report import Origin
from plywise.experiments.handover.run_folder import claimed
from plywise.experiments.handover.uniform_int8 import uniform_plan

W8A8 = "uniform_quantization(bits=8) + activation_quantization"


@pytest.mark.parametrize(
    ("instructions", "bits"),
    [
        ("avx avx2 fma", 7),
        ("avx2 avx512f avx512_vnni", 8),
        ("avx2 avx_vnni", 8),
        ("asimd", 7),
        ("asimd asimddp", 8),
        ("i8mm", 8),
        ("avx512_vnnix", 7),
        ("", 7),
    ],
)
def test_bits_follow_from_the_instructions(instructions, bits):
    found, reason = weight_bits(instructions)
    assert found == bits
    assert ("not known" in reason) == (bits == 7)


def test_this_machine_and_others_know_their_bits(monkeypatch):
    for instructions, bits in (("avx2", 7), ("avx512_vnni", 8)):
        monkeypatch.setattr(target_program, "processor", lambda said=instructions: ("a processor", said))
        assert Device.here().integer_weight_bits == bits
    monkeypatch.setattr(target_program, "graphics_card", lambda: "a card")
    assert Device.here(provider=CUDA).integer_weight_bits == 7
    assert Roofline("raspberry-pi-4").device.integer_weight_bits == 7
    assert Roofline("raspberry-pi-5").device.integer_weight_bits == 8


class Latency(FakeLatency):
    """The made-up device with weights of so many bits."""

    def __init__(self, bits):
        self.device = dataclasses.replace(FakeLatency.device, integer_weight_bits=bits, fingerprint=f"made up {bits}")


@pytest.fixture(params=[7, 8])
def subject(request, tmp_path, monkeypatch):
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path / "cache"))
    model = build(Plain)
    return Subject(model, samples(model, 48, 1), samples(model, 64, 3), "plain", Latency(request.param))


def test_reports_say_which_format_uniform_int8_has(subject, tmp_path, monkeypatch):
    TorchRuntime(monkeypatch)
    bits, plan = subject.latency.device.integer_weight_bits, uniform_plan(subject)
    assert {recipe.bits for recipe in plan.values()} == {bits}
    with claimed(tmp_path / "out"):
        origin = Origin("net.py:make", "folder:x", 0, "plan", 0, 0.0, "made up")
        report = hand_over(subject, plan, Demand(50.0), samples(build(Plain), 60, 5), tmp_path / "out", origin)
    assert report["uniform_int8"]["format"] == f"W{bits}A8"
    said = io.StringIO()
    show_report(report, Console(file=said, width=200))
    assert f"uniform W{bits}A8" in said.getvalue()
    assert report["uniform_int8"]["weight_bits_reason"] in said.getvalue()


def test_plans_of_8_bit_weights_are_refused_where_they_overflow(subject):
    plan, _ = Scheme.of({"*": W8A8}).on(subject.network)
    if subject.latency.device.integer_weight_bits == 8:
        check_weights_run(subject, plan)
        return
    with pytest.raises(ConfigurationError, match=r"'conv1' cannot take .*at most 7 bits are exact on made up .*bits=7"):
        check_weights_run(subject, plan)


def test_the_search_is_offered_what_the_device_computes_exactly(subject):
    exact = subject.latency.device.integer_weight_bits == 8
    for menu in subject.price().recipes:
        assert (W8A8 in menu) == exact
        assert W8A8.replace("8)", "7)") in menu
    assert not subject.price().refused


def test_devices_of_other_bits_share_a_cache(tmp_path, monkeypatch):
    """What is found of a layer is one figure for each recipe that the device is offered: not to be mixed up."""
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path / "cache"))
    model = build(Plain)
    drops = []
    for bits in (8, 7, 8):
        table = Subject(model, samples(model, 48, 1), samples(model, 64, 3), "plain", Latency(bits)).price()
        assert any(W8A8 in menu for menu in table.recipes) == (bits == 8)
        drops.append(
            [dict(zip(menu, row.tolist(), strict=False)) for menu, row in zip(table.recipes, table.drop, strict=True)]
        )
    assert drops[0] == drops[2]
    for eight, seven in zip(drops[0], drops[1], strict=True):
        assert set(eight) - set(seven) <= {W8A8}
        ratios = [seven[name] / eight[name] for name in seven if eight.get(name, 0.0) > 0.1]
        assert max(ratios) == pytest.approx(min(ratios), rel=0.05)  # points per nat of one network, whatever they are


@pytest.mark.parametrize(("instructions", "bits"), [("avx2", 7), ("avx2 avx512_vnni", 8)])
def test_networks_for_elsewhere_have_weights_that_this_machine_can_check(monkeypatch, instructions, bits):
    monkeypatch.setattr(target_program, "processor", lambda: ("a processor", instructions))
    device = open_device("raspberry-pi-5").device
    assert device.integer_weight_bits == bits
    assert ("files are checked on this machine" in device.integer_weight_reason) == (bits == 7)
