"""Timings and heavy work of several processes keep out of each other, whatever happens to those who hold the lock."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from torch import nn

from plywise.compressors.errors import ConfigurationError
from plywise.env.costs.latency import LatencyTable
from plywise.env.network.operation import operations
from plywise.env.runtime import runtime
from plywise.env.storage import timing_lock
from plywise.env.storage.timing_lock import TimingLock
from plywise.experiments import demo
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.networks.training import TrainingSettings, fit, reproducible

CHILD = """
import sys
from pathlib import Path
from plywise.env.storage.timing_lock import TimingLock
lock = TimingLock(Path(sys.argv[1]))
print("started", flush=True)
with getattr(lock, sys.argv[2])():
    print("inside", flush=True)
    for line in sys.stdin:
        if line == "pause\\n":
            lock.pause()
            print("paused", flush=True)
        else:
            break
print("left", flush=True)
"""
WAIT = 0.3
"""Seconds after which a process that has not come in counts as waiting."""


class Other:
    """Another process that asks for the lock and holds it until it is told to let go."""

    def __init__(self, folder, kind):
        command = [sys.executable, "-c", CHILD, str(folder), kind]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        os.set_blocking(self.process.stdout.fileno(), False)

    def line(self, patience=20.0):
        """Returns the next line that it prints, None where there is none in time."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            line = self.process.stdout.readline()
            if line:
                return line.strip()
            time.sleep(0.01)
        return None

    def tell(self, text):
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()


@pytest.fixture
def others(tmp_path):
    found = []

    def start(kind):
        found.append(Other(tmp_path, kind))
        assert found[-1].line() == "started"
        return found[-1]

    yield start
    for other in found:
        other.process.kill()
        other.process.wait()
        for pipe in (other.process.stdin, other.process.stdout):
            pipe.close()


def test_many_work_at_once(others):
    assert [others("working").line() for _ in range(2)] == ["inside", "inside"]


@pytest.mark.parametrize(("first", "second"), [("timing", "working"), ("working", "timing"), ("timing", "timing")])
def test_a_timing_excludes_everything_else(others, first, second):
    holder, waiting = others(first), others(second)
    assert holder.line() == "inside"
    assert waiting.line(WAIT) is None
    holder.tell("go")
    assert waiting.line() == "inside"


def test_a_timing_that_waits_comes_before_new_work(others):
    worker, timer = others("working"), others("timing")
    assert worker.line() == "inside"
    assert timer.line(WAIT) is None
    late = others("working")
    assert late.line(WAIT) is None
    worker.tell("pause")
    assert timer.line() == "inside"
    assert worker.line(WAIT) is None
    timer.tell("go")
    assert worker.line() == "paused"
    assert late.line() == "inside"


@pytest.mark.parametrize("kind", ["timing", "working"])
def test_a_killed_process_lets_go(others, kind):
    holder, waiting = others(kind), others("timing")
    assert holder.line() == "inside"
    assert waiting.line(WAIT) is None
    holder.process.kill()
    assert waiting.line() == "inside"


def test_ctrl_c_ends_the_wait_and_leaves_nothing_locked(others):
    holder, waiting = others("timing"), others("timing")
    assert holder.line() == "inside"
    assert waiting.line(WAIT) is None
    waiting.process.send_signal(signal.SIGINT)
    assert waiting.process.wait(20) != 0
    last = others("working")
    assert last.line(WAIT) is None
    holder.tell("go")
    assert last.line() == "inside"


def test_a_timing_inside_of_work_waits_for_no_one_else_and_work_goes_on_after_it(others, tmp_path):
    lock = TimingLock(tmp_path)
    with lock.working():
        with lock.timing(), lock.working(), lock.timing():
            other = others("working")
            assert other.line(WAIT) is None
        assert other.line() == "inside"
        timer = others("timing")
        other.tell("go")
        assert [other.line(), timer.line(WAIT)] == ["left", None], "work does not go on after the timing"
    assert timer.line() == "inside"


def test_a_folder_that_cannot_be_locked_is_told(tmp_path):
    with (
        pytest.raises(ConfigurationError, match=r"cannot be locked .* set PLYWISE_CACHE"),
        TimingLock(tmp_path / "missing").working(),
    ):
        pass


class Noted:
    """Notes what the lock of the cache is asked for."""

    def __init__(self, patch, folder):
        patch.setenv("PLYWISE_CACHE", str(folder))
        self.lock = timing_lock._lock()

    @property
    def state(self):
        return bool(self.lock._timings), self.lock._working is not None


def test_latencies_are_timed_alone_and_networks_trained_as_work(tmp_path, monkeypatch):
    noted, seen = Noted(monkeypatch, tmp_path), {}
    timed = runtime.loaded_run

    def loaded_run(*arguments):
        seen["timing"] = noted.state
        return timed(*arguments)

    monkeypatch.setattr("plywise.env.costs.latency.loaded_run", loaded_run)
    chains = [operations(nn.Linear(8, count), (8,)) for count in (4, 5)]
    assert np.isfinite(LatencyTable().milliseconds(chains)).all()
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    network[1].register_forward_hook(lambda *_: seen.update(training=noted.state))
    with reproducible(0):
        fit(network, load_dataset("digits").train, TrainingSettings(epochs=1), "Training")
    assert seen == {"timing": (True, False), "training": (False, True)}
    assert noted.state == (False, False)


def test_the_demo_prices_all_networks_before_its_agent_learns(tmp_path, monkeypatch):
    called = []

    class Stopped(Exception):
        pass

    def train(*_, **__):
        called.append("train")
        raise Stopped

    monkeypatch.setattr(demo, "RUN", tmp_path)
    monkeypatch.setattr(demo, "price_networks", lambda names: called.append(tuple(names)))
    monkeypatch.setattr(demo, "train_agent", train)
    with pytest.raises(Stopped):
        demo.main()
    assert set(demo.HELD_OUT) <= set(called[0])
    assert called[1:] == ["train"]
    assert not hasattr(demo, "warnings")
