"""Tasks do the same in one process and in several; whatever ends early leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
import torch

from plywise.compressors.errors import ModelError, WorkerError
from plywise.env.execution.executor import NoSetup
from plywise.env.execution.in_process import InProcess
from plywise.env.execution.process_pool import ONE_THREAD, ProcessPool
from plywise.env.storage import memory
from plywise.env.storage.result_store import ResultStore


def fresh(setup, store=None):
    return ProcessPool(2, setup, store)


def forked(setup, store=None):
    return ProcessPool(2, setup, store, forked=True)


@pytest.fixture(params=[InProcess, forked])  # fresh processes take seconds to import torch
def executor(request):
    return request.param


@pytest.fixture(params=[fresh, forked])
def pool(request):
    return request.param


@dataclass(frozen=True)
class Offset:
    """A context that says in a file when it was made."""

    value: int
    folder: str

    def load(self):
        with open(f"{self.folder}/{os.getpid()}", "a") as file:
            file.write("made\n")
        return self.value


@dataclass(frozen=True)
class Plus:
    number: int
    key: str | None = None

    def run(self, offset):
        time.sleep(0.02 if self.number % 2 else 0.0)  # later ones are ready first
        return [self.number + offset, torch.rand(1, generator=torch.Generator().manual_seed(self.number)).item()]


@dataclass(frozen=True)
class Failing:
    key: None = None

    def run(self, _):
        raise ModelError("this layer is like no other")


@dataclass(frozen=True)
class FailingSetup:
    def load(self):
        raise ModelError("nothing to compress")


@dataclass(frozen=True)
class Dying:
    key: None = None

    def run(self, _):
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Sleeping:
    seconds: float = 60.0
    key: None = None

    def run(self, _):
        time.sleep(self.seconds)
        return os.getpid()


@dataclass(frozen=True)
class Tupled:
    key: str = "tupled"

    def run(self, _):
        return (1, 2)


@dataclass(frozen=True)
class Conditions:
    key: None = None

    def run(self, _):
        settings = [os.environ.get(name) for name in ONE_THREAD]
        return torch.get_num_threads(), memory.ceiling_of_outputs() + memory.ceiling_of_layers(), settings


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids):
    """Returns whether processes end within some seconds."""
    for _ in range(200):
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("executor", [InProcess, fresh, forked])
def test_results_are_those_of_one_process_and_in_order(executor, tmp_path):
    tasks = [Plus(number) for number in range(9)]
    expected = [task.run(100) for task in tasks]
    with executor(Offset(100, str(tmp_path))) as opened:
        assert list(opened.results(tasks)) == expected
        assert opened.submit(Plus(3)).result() == expected[3]
    made = [path.read_text() for path in tmp_path.iterdir()]
    assert 1 <= len(made) <= 2
    assert set(made) == {"made\n"}  # once in each process


def test_errors_come_out_as_they_are(executor):
    with executor(NoSetup()) as opened:
        future = opened.submit(Failing())
        with pytest.raises(ModelError, match=r"^this layer is like no other$"):
            future.result()
    with executor(FailingSetup()) as opened:
        future = opened.submit(Plus(1))
        with pytest.raises(ModelError, match=r"^nothing to compress$"):
            future.result()


def test_what_is_known_is_not_run_again(executor, tmp_path):
    store = ResultStore(tmp_path / "results.sqlite")
    with executor(Offset(100, str(tmp_path)), store) as opened:
        first = list(opened.results([Plus(1, "one"), Plus(2)]))
    with executor(FailingSetup(), store) as opened:
        assert opened.submit(Plus(1, "one")).result() == first[0]
        with pytest.raises(ModelError):
            opened.submit(Plus(2)).result()  # has no key


def test_what_would_be_read_back_otherwise_is_not_kept(executor, tmp_path):
    store = ResultStore(tmp_path / "results.sqlite")
    with executor(NoSetup(), store) as opened, pytest.raises(AssertionError, match="tupled"):
        opened.submit(Tupled()).result()
    assert store.get("tupled") is None


def test_nothing_is_kept_of_what_failed(executor, tmp_path):
    store = ResultStore(tmp_path / "results.sqlite")
    with executor(FailingSetup(), store) as opened, pytest.raises(ModelError):
        opened.submit(Plus(1, "one")).result()
    assert store.get("one") is None


def test_a_worker_that_dies_is_told_and_leaves_nothing_waiting():
    with pytest.raises(WorkerError, match="because memory ran out"), forked(NoSetup()) as opened:
        list(opened.results([Dying(), *(Plus(number) for number in range(20))]))


def test_a_worker_has_one_thread_and_its_part_of_the_memory(pool, monkeypatch):
    monkeypatch.setattr(memory, "_asked", [3 * memory.GIB])
    before = dict(os.environ)
    with pool(NoSetup()) as opened:
        threads, ceiling, settings = opened.submit(Conditions()).result()
    assert (threads, ceiling) == (1, 3 * memory.GIB // 2)
    assert dict(os.environ) == before
    if pool is fresh:
        assert set(settings) == {"1"}


def failing_with(pids):
    """Begins tasks that take a minute, notes the processes, and fails."""
    with forked(NoSetup()) as opened:
        opened.submit(Sleeping(0.0)).result()
        opened.results([Sleeping()] * 4)
        pids += opened._pool._processes
        time.sleep(0.5)  # until they run
        raise ModelError("of the caller")


def test_leaving_by_an_error_ends_the_workers():
    pids, started = [], time.monotonic()
    with pytest.raises(ModelError, match="of the caller"):
        failing_with(pids)
    assert time.monotonic() - started < 45.0  # nobody waits for what is dropped
    assert len(pids) == 2
    assert gone(pids)


SCRIPT = """
from test_execution import NoSetup, ProcessPool, Sleeping
from plywise.env.execution.progress import tracked
opened = ProcessPool(2, NoSetup(), forked={forked})
with opened:
    for begun in [opened.submit(Sleeping(0.2)) for _ in range(2 if {forked} else 1)]:
        begun.result()  # both workers are up, and deaf to Ctrl-C
    results = opened.results([Sleeping()] * (1 if {forked} else 2))  # a forked one waits, fresh ones start as needed
    print(*opened._pool._processes, flush=True)
    list(results)
"""


@pytest.mark.parametrize(
    ("by", "forked"), [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGKILL, True)]
)
def test_no_worker_outlives_a_script_that_ends_early_and_needs_no_guard(tmp_path, by, forked):
    (tmp_path / "script.py").write_text(SCRIPT.format(forked=forked))
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    script = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | paths,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pids = list(map(int, script.stdout.readline().split()))
    assert len(pids) == 2, script.stderr.read()
    if by == signal.SIGINT:
        os.killpg(script.pid, by)  # as a terminal does
    else:
        script.send_signal(by)
    said = script.communicate(timeout=30)[1]
    assert gone(pids)
    assert said.count("Traceback") <= 1  # of the script itself, not of its workers
