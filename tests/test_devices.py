"""Declared devices, device files from other machines, and energy counters."""

import dataclasses
import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_networks import Plain, build, images, labels
from torch import nn
from torch_runtime import TorchRuntime

import plywise
from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.env.costs.chains import realised_chain
from plywise.env.costs.declared_devices import DECLARED, Figure
from plywise.env.costs.device import Device
from plywise.env.costs.device_file import DeviceFile, write_questions
from plywise.env.costs.devices import open_device
from plywise.env.costs.energy import energy_mj
from plywise.env.costs.latency import Chain, LatencyTable, chain_key
from plywise.env.costs.network_latency import NetworkLatency
from plywise.env.costs.roofline import Roofline, moved_bytes, needed_bytes
from plywise.env.network.network import Network
from plywise.env.network.operation import operations
from plywise.env.runtime import energy_counter, target_program
from plywise.env.runtime.energy_counter import card_counter, processor_counter
from plywise.env.runtime.operation_graph import operation_graph
from plywise.env.runtime.runtime import time_models
from plywise.env.runtime.target_program import CPU, CUDA, Execution
from plywise.env.score.demand import Demand
from plywise.env.subject import Subject
from plywise.env.task.samples import Samples, labelled
from plywise.experiments.commands.listings import devices
from plywise.experiments.compress_model import show_report
from plywise.experiments.handover import measuring
from plywise.experiments.handover.handover import hand_over
from plywise.experiments.handover.report import Origin
from plywise.experiments.handover.run_folder import claimed
from plywise.experiments.handover.running import Running

LINEAR: Chain = operations(nn.Linear(1000, 500), (1000,))
WIDE: Chain = operations(nn.Conv2d(64, 64, 3, padding=1), (64, 32, 32))


@pytest.mark.slow
def test_a_device_file_gives_the_same_files_from_an_empty_cache(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4))
    batches = [torch.randn(32, 16) for _ in range(16)]
    device_file(tmp_path)
    for name in ("one", "two"):
        monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path / f"{name} cache"))
        options = {"method": "guided", "evaluations": 4, "device": tmp_path / "device.json"}
        plywise.compress(network, batches, tmp_path / name, max_storage=0.3, **options)
    for name in ("plan.yaml", "weights.safetensors", "model.onnx"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def integer(chain: Chain) -> Chain:
    return tuple(dataclasses.replace(operation, integer=True) for operation in chain)


def answers(**changes) -> dict:
    """A device file of an empty graph, a convolution, and a linear layer that the runtime refused."""
    chains = [
        {"chain": chain_key(()), "median_ms": 0.5, "low_ms": 0.4, "high_ms": 0.6},
        {"chain": chain_key(WIDE), "median_ms": 2.5, "low_ms": 2.4, "high_ms": 2.6},
        {"chain": chain_key(LINEAR), "reason": "no kernel"},
    ]
    plain = {"format": "plywise-device/1", "name": "Cortex-A72", "fingerprint": "f", "threads": 1, "chains": chains}
    return plain | changes


def device_file(folder: Path, **changes) -> DeviceFile:
    path = folder / "device.json"
    path.write_text(json.dumps(answers(**changes)))
    return DeviceFile(path)


def test_every_declared_figure_is_a_positive_number_with_a_source() -> None:
    assert len(DECLARED) >= 12
    kinds = {device.kind for device in DECLARED.values()}
    assert kinds == {"phone", "wearable", "board", "microcontroller", "server", "gpu"}
    for device in DECLARED.values():
        figures = [getattr(device, field.name) for field in dataclasses.fields(device) if field.type == Figure]
        assert len(figures) == 7
        assert all(value > 0 and len(source) > 4 for value, source in figures)
        assert device.integer_gmacs[0] >= device.float_gmacs[0]


def test_the_roofline_is_the_longer_of_arithmetic_and_bytes_plus_the_start() -> None:
    pi = Roofline("raspberry-pi-4")
    assert moved_bytes(LINEAR[0]) == 4 * (500_000 + 500 + 1000 + 500)
    bytes_bound, arithmetic_bound = pi.milliseconds([LINEAR, WIDE])
    assert bytes_bound == pytest.approx(4 * 502_000 / 5.6e9 * 1e3 + 0.008)
    assert arithmetic_bound == pytest.approx(WIDE[0].macs / 28.8e9 * 1e3 + 0.008)
    assert pi.milliseconds([WIDE * 2])[0] == pytest.approx(2 * arithmetic_bound)
    assert pi.milliseconds([integer(WIDE)])[0] == pytest.approx(WIDE[0].macs / 57.6e9 * 1e3 + 0.008)
    assert pi.milliseconds([()])[0] == 0.0


@pytest.mark.parametrize("name", DECLARED)
def test_declared_devices_are_labelled_and_differ(name) -> None:
    latency = open_device(name)
    assert latency.device.latency_source == "declared"
    assert latency.source_of([WIDE]).startswith("declared")
    assert not latency.device.is_here
    others = {open_device(other).device.fingerprint for other in DECLARED if other != name}
    assert latency.device.fingerprint not in others
    units = latency.device.energies
    assert energy_mj(integer(WIDE), units) < energy_mj(WIDE, units)
    arithmetic = dataclasses.replace(units, cache_byte_pj=0.0, memory_byte_pj=0.0)
    watts = energy_mj(WIDE, arithmetic) / (WIDE[0].macs / 1e9)
    assert watts == pytest.approx(DECLARED[name].watts[0] * 1e3 / DECLARED[name].float_gmacs[0])


def test_memory_counts_all_weights_and_the_largest_activations() -> None:
    weights = 4 * (500_000 + 500) + 64 * 64 * 9 + 4 * 64
    assert needed_bytes([LINEAR, integer(WIDE)]) == weights + 2 * 64 * 32 * 32
    assert needed_bytes([WIDE]) < Roofline("raspberry-pi-4").device.memory_bytes
    assert needed_bytes([LINEAR]) > Roofline("stm32f746").device.memory_bytes


def test_devices_are_found_by_name_or_file_or_told(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"Did you mean.*raspberry-pi-4"):
        open_device("raspberry-pi4")
    with pytest.raises(FileFormatError, match=r"missing\.json cannot be read"):
        open_device(str(tmp_path / "missing.json"))
    device_file(tmp_path)
    assert open_device(str(tmp_path / "device.json")).device.name == "Cortex-A72"


def test_this_machine_may_use_several_threads(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert open_device("here:3").device == Device.here(threads=3)
    assert open_device("here:3x8").device == Device.here(threads=3, batch=8)
    for wrong in ("here:", "here:0", "here:5", "here:-1", "here:two", "here:x8"):
        with pytest.raises(ConfigurationError, match=r"whole number from 1 to the 4 cores here, as in here:4"):
            open_device(wrong)
    for wrong in ("here:1x", "here:1x0", "here:1xx", "here:1x-2"):
        with pytest.raises(ConfigurationError, match=r"a batch must be a whole number from 1, as in here:4x8"):
            open_device(wrong)


def test_a_card_that_is_not_there_is_said(monkeypatch) -> None:
    with pytest.raises(ConfigurationError, match=r"no CUDAExecutionProvider, only .*install onnxruntime-gpu"):
        open_device("cuda")
    for wrong in ("cuda:", "cuda:0", "cuda:x0", "cuda:xx"):
        with pytest.raises(ConfigurationError, match=r"a batch must be a whole number from 1, as in cuda:x8"):
            open_device(wrong)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, CPU])  # installed, and no driver for it
    with pytest.raises(ConfigurationError, match=r"device 'cuda': .*CUDAExecutionProvider.*driver"):
        open_device("cuda")


def test_a_card_runs_all_that_is_timed(monkeypatch, tmp_path) -> None:
    """With the processor in the card's place, without one."""
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(target_program, "graphics_card", lambda: "H200, 570.1")
    opened, really = [], target_program.open_session

    def here(model, execution, optimised):
        opened.append(execution)
        return really(model, Execution())

    monkeypatch.setattr(target_program, "open_session", here)
    latencies = open_device("cuda:x8")
    assert latencies.device == Device.here(batch=8, provider=CUDA) != Device.here(batch=8)
    assert (latencies.device.name, latencies.device.batch) == ("H200, 570.1", 8)
    network = Network.of(build(Plain), images(4))
    whole = NetworkLatency(network, latencies)
    assert np.isfinite(latencies.milliseconds(list(network.operations.values()))).all()
    assert whole.measured(network.operations) > 0.0
    (tmp_path / "empty.onnx").write_bytes(operation_graph(()))
    time_models([tmp_path / "empty.onnx"], (1, 1), latencies.device.execution)
    assert set(opened) == {Execution(provider=CUDA)}


def test_a_card_that_the_runtime_leaves_for_the_processor_is_refused(monkeypatch) -> None:
    class OnTheProcessor:
        def __init__(self, *_, **__) -> None:
            pass

        def get_providers(self) -> list[str]:
            return [CPU]

    monkeypatch.setattr("onnxruntime.InferenceSession", OnTheProcessor)
    target_program.open_session(b"", Execution())
    with pytest.raises(RuntimeError, match="cannot load CUDAExecutionProvider"):
        target_program.open_session(b"", Execution(provider=CUDA))


def test_only_one_thread_of_the_processor_is_timed_by_its_own_clock() -> None:
    assert target_program.clock(Execution()) is time.thread_time
    for other in (Execution(2), Execution(provider=CUDA)):
        assert target_program.clock(other) is time.perf_counter


def test_the_listing_names_every_device_and_its_sources() -> None:
    entries = devices()
    assert [entry.name for entry in entries] == list(DECLARED)
    assert all("STREAM" in str(entry.details) for entry in entries if entry.name == "raspberry-pi-4")
    assert all(len(entry.details) == 7 for entry in entries)


def test_the_questions_measure_themselves_without_plywise(tmp_path) -> None:
    small, embedding = operations(nn.Linear(4, 4), (4,)), operations(nn.Embedding(5, 3), (7,))
    wrong = (dataclasses.replace(WIDE[0], groups=5),)
    write_questions([small, integer(small), embedding, wrong, small], tmp_path / "questions.zip")
    with zipfile.ZipFile(tmp_path / "questions.zip") as archive:
        assert len(archive.namelist()) == 2 + 5
        assert "plywise." not in archive.read("__main__.py").decode()
    # Isolated and from another folder, so that nothing of ours can be imported from the tree.
    command = [sys.executable, "-I", "questions.zip", "device.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "5 of 5 layers measured" in done.stderr
    table = DeviceFile(tmp_path / "device.json")
    found = table.milliseconds([small, integer(small), embedding, wrong])
    assert np.isnan(found).tolist() == [False, False, False, True]
    assert (found[:3] > 0).all()
    assert table.device.name == Device.here().name
    assert table.device.latency_source == "measured elsewhere"
    assert "estimated" not in table.source_of([small])


SMALL = [operations(nn.Linear(4, width), (4,)) for width in range(1, 6)]


class Answers:
    """Answers at once, and stops the program where it is asked a question too many."""

    def __init__(self, most: int = 99) -> None:
        self.asked, self.most = 0, most

    def __call__(self, model: bytes, shape: list[int], execution: Execution) -> dict:
        if self.asked == self.most:
            raise KeyboardInterrupt
        self.asked += 1
        return {"median_ms": 1.0 + self.asked, "low_ms": 1.0, "high_ms": 1.0 + self.asked}


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Runs the program on six questions with answers that cost nothing; returns how it ended and what it was asked."""
    write_questions(SMALL, tmp_path / "questions.zip")

    def run(most: int = 99, path: Path = tmp_path / "device.json"):
        answers = Answers(most)
        monkeypatch.setattr(target_program, "answer", answers)
        return target_program.main([str(tmp_path / "questions.zip"), str(path)]), answers.asked

    return run


def test_a_bad_path_is_told_before_anything_is_measured(ask, tmp_path) -> None:
    said, asked = ask(path=tmp_path / "no" / "device.json")
    assert "device.json.part: No such file or directory; name another file" in said
    assert asked == 0
    said, asked = ask(path=tmp_path)
    assert said.endswith("is a folder; name a file, such as device.json")
    assert asked == 0


def test_ctrl_c_keeps_what_was_measured_and_the_same_command_goes_on(ask, tmp_path, capsys) -> None:
    assert ask(most=3) == (130, 3)
    assert capsys.readouterr().err.splitlines()[-1].endswith("and the same command goes on from there")
    assert not (tmp_path / "device.json").exists()
    with (tmp_path / "device.json.part").open("a") as file:
        file.write('{"chain": "[{')  # a kill in the middle of a line
    assert ask(most=2) == (130, 2)
    assert ask() == (None, 1)
    assert DeviceFile(tmp_path / "device.json").source_of(SMALL).endswith("threads: 1, batch: 1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device.json", "questions.zip"]


@pytest.mark.parametrize("changed", ["questions", "machine", "runtime"])
def test_what_was_measured_of_something_else_is_not_gone_on_with(ask, tmp_path, monkeypatch, capsys, changed) -> None:
    assert ask(most=3) == (130, 3)
    if changed == "questions":
        write_questions(SMALL, tmp_path / "questions.zip", batch=2)
    elif changed == "machine":
        monkeypatch.setattr(target_program, "processor", lambda: ("another", ""))
    else:
        monkeypatch.setattr("onnxruntime.__version__", "99.0")
    assert ask() == (None, 6)
    assert "measuring anew" in capsys.readouterr().err


def test_what_the_runtime_refuses_is_asked_again(ask, tmp_path, monkeypatch) -> None:
    ask(most=6)
    monkeypatch.setattr(target_program, "answer", lambda *_: {"reason": "no kernel"})
    command = [str(tmp_path / "questions.zip"), str(tmp_path / "other.json")]
    assert "refuses every model (no kernel)" in target_program.main(command)
    assert ask(path=tmp_path / "other.json") == (None, 6)


def test_a_full_disk_keeps_what_was_measured(tmp_path) -> None:
    write_questions(SMALL, tmp_path / "questions.zip")
    command = [sys.executable, "-I", "questions.zip", "device.json"]
    limited = ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", *command]  # 1024 bytes in a file
    full = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1].startswith("File too large; what was measured is kept in device.json.part")
    assert "Traceback" not in full.stderr
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "device.json.part holds" in again.stderr
    assert np.isfinite(DeviceFile(tmp_path / "device.json").milliseconds(SMALL)).all()


def test_questions_may_ask_for_threads_and_batches(tmp_path) -> None:
    seen, embedding = [], operations(nn.Embedding(5, 3), (7,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target_program, "answer", lambda *asked: seen.append(asked[1:]) or Answers()(*asked))
        write_questions([WIDE, embedding], tmp_path / "questions.zip", Execution(3), batch=4)
        assert target_program.main([str(tmp_path / "questions.zip"), str(tmp_path / "device.json")]) is None
    shapes = [[4, 1], [4, 64, 32, 32], [4, 7]]
    assert seen == [(shape, Execution(3)) for shape in shapes]
    table = DeviceFile(tmp_path / "device.json")
    assert (table.device.execution, table.device.batch) == (Execution(3), 4)
    assert table.source_of([WIDE]).endswith(", threads: 3, batch: 4")


def test_device_files_of_a_card_and_from_before_batches(tmp_path) -> None:
    old = device_file(tmp_path).device
    assert (old.execution, old.batch, old.running) == (Execution(1), 1, "threads: 1, batch: 1")
    card = device_file(tmp_path, provider=CUDA, batch=8).device
    assert (card.execution, card.batch, card.running) == (Execution(1, CUDA), 8, f"{CUDA}, batch: 8")
    assert not card.is_here


def test_estimates_of_chains_count_the_batch(tmp_path) -> None:
    """Twice the inputs of a layer of many weights are hardly more work for one image, and twice as much for many."""
    heavy, twice = operations(nn.Linear(100, 100), (4, 100)), operations(nn.Linear(100, 100), (8, 100))
    chains = [answers()["chains"][0], {"chain": chain_key(heavy), "median_ms": 1.5}]
    one, many = (device_file(tmp_path, chains=chains, batch=batch).milliseconds([twice])[0] for batch in (1, 1000))
    assert one < 1.9
    assert many == pytest.approx(2.0, rel=1e-3)


def test_a_device_file_takes_the_empty_graph_off_and_estimates_what_was_not_asked(tmp_path) -> None:
    table = device_file(tmp_path)
    twice = operations(nn.Conv2d(64, 128, 3, padding=1), (64, 32, 32))
    found = table.milliseconds([WIDE, LINEAR, twice, ()])
    assert found[0] == pytest.approx(2.0)
    assert np.isnan(found[1])
    assert found[2] == pytest.approx(4.0, rel=0.05)
    assert found[3] == 0.0
    assert table.source_of([WIDE, twice]).endswith("1 of 2 layers estimated from others")
    rounded = tuple(dataclasses.replace(operation, integer=True) for operation in twice)
    words = "2 of 2 layers estimated from others, 1 of which are of a kind that was not measured at all"
    assert table.source_of([twice, rounded]).endswith(words)
    again = [*answers()["chains"][:1], answers()["chains"][1] | {"median_ms": 9.0}]
    assert device_file(tmp_path, chains=again).device.fingerprint != table.device.fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "plywise-device/2"},
        {"name": 3},
        {"threads": "many"},
        {"chains": None},
        {"chains": []},
        {"chains": [{"chain": "[]", "median_ms": 1.0}]},
        {"chains": [{"chain": "[]", "median_ms": -1.0}]},
        {"chains": [{"chain": "[]", "median_ms": float("nan")}]},
        {"chains": [{"chain": "[]"}]},
        {"chains": [{"chain": "[]", "median_ms": 1.0}, {"chain": "[{}]", "median_ms": 1.0}]},
        {"chains": [{"chain": "[]", "median_ms": 1.0}, {"chain": "no json", "median_ms": 1.0}]},
        {"chains": [{"chain": "[" * 100_000, "median_ms": 1.0}]},
    ],
)
def test_damaged_device_files_are_one_clear_error(tmp_path, changes) -> None:
    with pytest.raises(FileFormatError, match=r"device\.json"):
        device_file(tmp_path, **changes)


def damaged(**changes) -> list[dict]:
    """Answers whose second chain has other entries."""
    chains = answers()["chains"]
    return [chains[0], chains[1] | {"chain": json.dumps([dataclasses.asdict(WIDE[0]) | changes])}]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"threads": -5}, r"threads=-5 must be a whole number from 1"),
        ({"threads": True}, r"threads=True must be"),
        ({"batch": 0}, r"batch=0 must be"),
        ({"batch": 2.5}, r"batch=2\.5 must be"),
        ({"provider": "abacus"}, r"provider='abacus' must be CPUExecutionProvider or CUDAExecutionProvider"),
        ({"name": 3}, r"name=3 must be text"),
        ({"chains": {}}, r"chains=\{\} must be a list"),
        ({"chains": damaged(groups=0)}, r"chains\[1\]: groups=0 must be a whole number from 1"),
        ({"chains": damaged(in_channels=0)}, r"chains\[1\]: in_channels=0 must be"),
        ({"chains": damaged(input_shape=[64, 10**300, 32])}, r"chains\[1\]: input_shape=10+ must be"),
        ({"chains": damaged(input_shape=[2**31 - 1] * 8)}, r"chains\[1\]: its work of .* is beyond"),
        ({"chains": damaged(input_shape=[1] * 9)}, r"chains\[1\]: input_shape must have at most 8 axes"),
        ({"chains": damaged(input_shape=-4)}, r"chains\[1\]: input_shape=-4 must be a list"),
        ({"chains": damaged(kernel=[3, -3])}, r"chains\[1\]: kernel=-3 must be"),
        ({"chains": damaged(stride=[0, 1])}, r"chains\[1\]: stride=0 must be"),
        ({"chains": [answers()["chains"][0], {"median_ms": 1.0}]}, r"chains\[1\]: 'chain' is missing"),
    ],
)
def test_a_damaged_entry_is_named_on_loading(tmp_path, changes, named) -> None:
    with pytest.raises(FileFormatError, match=rf"device\.json is damaged: {named}.*; make it anew with 'python3"):
        device_file(tmp_path, **changes)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"[1, 2]", b"[" * 100_000, b'{"format": "plywise-dev'])
def test_files_of_another_kind_are_one_clear_error(tmp_path, content) -> None:
    (tmp_path / "device.json").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"device\.json"):
        DeviceFile(tmp_path / "device.json")


def counters(folder: Path, *packages: int) -> Path:
    for place, microjoules in enumerate(packages):
        for name in (f"intel-rapl:{place}", f"intel-rapl:{place}:0"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "energy_uj").write_text(f"{microjoules}\n")
            (folder / name / "max_energy_range_uj").write_text("1000000\n")
    return folder


def test_counters_give_the_energy_of_one_run_and_may_start_over(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(energy_counter, "SECONDS", 0.0)
    counter = processor_counter(counters(tmp_path, 100, 999_000))
    # 400 and, over the end of its range, 3,000 microjoules; parts of a package are not counted twice.
    assert counter.millijoules(lambda: counters(tmp_path, 500, 2_000)) == pytest.approx(3.4)
    counters(tmp_path, 0, 0)
    spent = iter(range(1, 99))
    found = counter.of_all([lambda: counters(tmp_path, 1000 * next(spent), 0)] * 2)
    assert found == pytest.approx([1.0, 1.0])


def test_machines_without_counters_say_so(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="holds no energy counters"):
        processor_counter(tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="stand still while"):
        processor_counter(counters(tmp_path, 5)).millijoules(lambda: None)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(ConfigurationError, match=r"cannot be read.*chmod"):
        processor_counter(tmp_path)


class Nvml:
    """What NVIDIA's package does where there is one card."""

    class NVMLError(Exception):
        pass

    def __init__(self, millijoules: Iterator[int], broken: str = "") -> None:
        self.millijoules, self.broken = millijoules, broken

    def nvmlInit(self) -> None:
        if self.broken:
            raise self.NVMLError(self.broken)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index + 7

    def nvmlDeviceGetTotalEnergyConsumption(self, card: int) -> int:
        assert card == 7
        return next(self.millijoules)


def test_cards_count_millijoules(monkeypatch) -> None:
    monkeypatch.setattr(energy_counter, "CARD_SECONDS", 0.0)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(iter((5, 100, 142))))
    assert card_counter().millijoules(lambda: None) == pytest.approx(42.0)


def test_cards_without_counters_say_so(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(iter(()), "Driver Not Loaded"))
    with pytest.raises(ConfigurationError, match=r"cannot be read \(Driver Not Loaded\)"):
        card_counter()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ConfigurationError, match="pip install nvidia-ml-py"):
        card_counter()


def samples(count: int, seed: int) -> Samples:
    return labelled(images(count, seed), labels(count, seed))


def test_reports_say_what_was_declared_measured_or_modelled(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path / "cache"))
    TorchRuntime(monkeypatch)
    latency = Roofline("stm32f746")
    subject = Subject(build(Plain), samples(16, 1), samples(16, 2), "plain", latency)
    plan = Plan("plain", {layer.name: Recipe() for layer in subject.layers})
    origin = Origin("net.py:make", "digits", 0, "plan", 0, 0.0, "made up")
    with claimed(tmp_path / "there"):
        report = hand_over(subject, plan, Demand(), samples(8, 3), tmp_path / "there", origin)
    block = report["compressed"]
    chains = [realised_chain(subject.network.modules[layer.name], layer) for layer in subject.layers]
    assert report["device"]["latency_source"] == block["energy_source"] == "declared"
    assert report["demand_latency"] == "device_latency_ms"
    assert block["device_latency_ms"] == pytest.approx(latency.milliseconds(chains).sum())
    assert block["device_latency_source"].startswith("declared")
    assert block["latency_ms"] == 1.0
    assert block["fits_memory"] == (block["memory_needed_bytes"] <= 1.37e6)
    said = io.StringIO()
    show_report(report, Console(file=said, width=200))
    assert "latency, ms (declared)" in said.getvalue()
    assert "latency, ms (ONNX Runtime, here)" in said.getvalue()
    assert "judged by the latency on stm32f746" in said.getvalue()

    # Of a device that is too small for it.
    subject.latency.device = dataclasses.replace(latency.device, memory_bytes=1000)
    with claimed(tmp_path / "small"):
        small = hand_over(subject, plan, Demand(), samples(8, 3), tmp_path / "small", origin)
    assert report["demand_met"]
    assert not small["demand_met"]
    assert small["violations"] == {"memory": pytest.approx(block["memory_needed_bytes"] / 1000 - 1)}
    assert small["score"] == report["score"]
    show_report(small, Console(file=said, width=80))
    there = f"needs at least {block['memory_needed_bytes']:,} bytes while it runs, and there are 1,000; give a lower"
    assert any(there in line for line in said.getvalue().splitlines())
    assert "NOT met: beyond the ceiling of memory by" in said.getvalue()

    # The same network for this machine, first without and then with a counter.
    subject.latency = LatencyTable(tmp_path / "table.sqlite")
    monkeypatch.setattr(measuring, "processor_counter", partial(processor_counter, tmp_path / "none"))
    with claimed(tmp_path / "here"):
        report = hand_over(subject, plan, Demand(), samples(8, 3), tmp_path / "here", origin)
    assert report["compressed"]["energy_source"] == "modelled"
    assert "holds no energy counters" in report["energy_counter"]
    assert report["demand_latency"] == "latency_ms"
    assert "device_latency_ms" not in report["compressed"]
    monkeypatch.setattr(measuring, "processor_counter", lambda: "a counter")
    monkeypatch.setattr(measuring, "measure_energy", lambda paths, *_: [3.0, 2.0, 1.0])
    with claimed(tmp_path / "counted"):
        report = hand_over(subject, plan, Demand(), samples(8, 3), tmp_path / "counted", origin)
    assert [report[name]["energy_mj"] for name in ("original", "uniform_int8", "compressed")] == [3.0, 2.0, 1.0]
    assert report["compressed"]["energy_source"] == "measured"

    # For the card in it, with the processor in its place.
    subject.latency = LatencyTable(tmp_path / "table.sqlite", dataclasses.replace(Device.here(), provider=CUDA))
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(iter(()), "Driver Not Loaded"))
    unread, said = measuring.measured_energies(Running.on(subject.latency.device, True), [tmp_path], (1, 3, 8, 8))
    assert (unread, said) == ([None], "not read: the card's energy counter cannot be read (Driver Not Loaded)")
    monkeypatch.setattr(measuring, "card_counter", lambda: "a card")
    monkeypatch.setattr(
        measuring,
        "measure_energy",
        lambda paths, shape, *given: [8.0 * float(given == ("a card", card.execution) and shape == (8, 3, 8, 8))],
    )
    card = dataclasses.replace(subject.latency.device, batch=8)
    found, said = measuring.measured_energies(Running.on(card, True), [tmp_path], (8, 3, 8, 8))
    assert found == [1.0]  # of one of the eight inputs
    assert said.startswith("read: the whole card")
