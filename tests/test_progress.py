"""How far work is: nothing where it is quick, a bar in a terminal, lines with the time elsewhere."""

import re
import time

import pytest

from plywise.env.execution import progress
from plywise.env.execution.progress import Progress, phase, tracked

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")


def test_what_is_quick_shows_nothing(clock, capsys):
    assert list(tracked([1, 2, 3], "Quick")) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar_and_takes_it_away(clock, terminal, capsys):
    for _ in tracked([1, 2, 3], "Slow"):
        clock[0] += 5.0
    shown = capsys.readouterr().err
    assert "Slow" in shown
    assert "━" in shown
    assert not re.search(STAMP, shown)


def test_elsewhere_there_are_lines_with_the_time_and_what_is_left(clock, capsys):
    for _ in tracked(range(10), "Slow"):
        clock[0] += 30.0
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(rf"{STAMP} Slow: ", line) for line in lines)
    said = [line.split(": ", 1)[1] for line in lines]
    assert said[0] == "1 of 10, about 4 min left"
    assert said[1] == "3 of 10, about 4 min left"  # one line a minute, not one an item
    assert said[-1] == "done after 5 min"
    assert len(said) == 6


def test_items_that_are_long_in_coming_are_counted_when_they_are_there(clock, capsys):
    def slow():
        for item in range(2):
            clock[0] += 300.0
            yield item

    list(tracked(slow(), "Slow", 2))
    assert [line.split(": ", 1)[1] for line in capsys.readouterr().err.splitlines()] == [
        "1 of 2, about 5 min left",
        "2 of 2",
        "done after 10 min",
    ]


def test_steps_of_an_earlier_run_do_not_shorten_what_is_left(clock, capsys):
    with Progress("Training", 1000, begun_at=900) as bar:
        clock[0] += 10.0
        bar.update(910, "score 0.5")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("Training: 910 of 1,000, about 2 min left, score 0.5")


def test_what_was_interrupted_is_not_called_done(clock, capsys):
    def broken():
        for _ in tracked(range(3), "Slow"):
            clock[0] += 30.0
            if clock[0] > 150.0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert "done" not in capsys.readouterr().err


def test_nothing_is_shown_where_nobody_asked(clock, capsys, terminal):
    with Progress("Training", 10, shown=False) as bar:
        clock[0] += 100.0
        bar.update(5)
    assert capsys.readouterr().err == ""


def eventually(seen, what):
    """Waits until a thread has shown something."""
    deadline = time.monotonic() + 20.0
    while what not in (text := seen()):
        assert time.monotonic() < deadline, text
        time.sleep(0.002)
    return text


@pytest.fixture
def impatient(monkeypatch):
    """Shows at once what takes any time."""
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.001)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.001)


def test_one_long_step_shows_lines_while_it_runs(impatient, capfd):
    with phase(tracked, "Calibrating"):
        text = eventually(lambda: capfd.readouterr().err, "Calibrating: 0 s so far")
    assert re.match(STAMP, text)
    assert "Calibrating: done after 0 s" in capfd.readouterr().err
    count = iter(tracked(range(3), "Layers"))
    next(count)
    eventually(lambda: capfd.readouterr().err, "Layers: 0 of 3")
    count.close()


def test_a_bar_is_shown_while_the_first_step_runs(impatient, terminal, capfd):
    with phase(tracked, "Calibrating"):
        eventually(lambda: capfd.readouterr().err, "Calibrating")


def test_of_nested_work_the_innermost_is_shown(clock, capsys):
    for _ in tracked(range(1), "Outer", 2):
        for _ in tracked(range(2), "Inner"):
            clock[0] += 70.0
    said = [line.split(" ", 2)[2] for line in capsys.readouterr().err.splitlines()]
    assert said == [
        "Inner: 1 of 2, about 70 s left",
        "Inner: 2 of 2",
        "Inner: done after 2 min",
        "Outer: 1 of 2, about 2 min left",
    ]


def test_what_fails_is_not_called_done(clock, capsys):
    def fails():
        clock[0] += 100.0
        return 1 / 0

    with pytest.raises(ZeroDivisionError), phase(tracked, "Calibrating"):
        fails()
    assert capsys.readouterr().err == ""
    assert progress._STACK == []
