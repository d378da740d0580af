import re

import numpy as np
import pytest
from rich.console import Console

from plywise.experiments.workbench import results_page
from plywise.experiments.workbench.plots import Points, against, growth, save
from plywise.experiments.workbench.results_page import Page


def drawn(seed=0):
    x = np.random.default_rng(seed).random(7)
    return against({"a net": [Points(x, 2 * x, x)], "b": [Points(x, x)]}, "scored", "predicted", equal=True)


def test_pictures_of_the_same_figures_are_the_same_file(tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        save(drawn(seed), tmp_path / name)
    one, two, other = ((tmp_path / name).read_text() for name in ("one", "two", "other"))
    assert one == two != other
    assert all(f">{words}</text>" in one for words in ("a net", "b", "scored", "predicted"))


def test_each_panel_has_its_points_and_the_line_of_what_is_right():
    first, second = drawn().axes
    points, line = first.lines
    assert list(line.get_xdata()) == list(line.get_ydata())
    assert (points.get_ydata() == 2 * points.get_xdata()).all()
    assert len(first.containers[0].lines[2][0].get_segments()) == 7  # bars
    assert not second.containers[0].has_yerr
    assert first.figure.legends == []
    many = against({name: [Points([1], [2], label=f"{name}{suffix}") for suffix in "xy"] for name in "ab"}, "", "")
    assert [text.get_text() for text in many.legends[0].get_texts()] == ["ax", "ay"]


def test_growth_shows_the_power_that_was_fitted():
    sizes = [10, 20, 40]
    figure = growth({"layers": Points(sizes, [0.3 * size**1.5 for size in sizes], label="random")}, "seconds")
    assert figure.axes[0].get_title() == "random: power 1.50"
    fitted, measured = (line.get_ydata() for line in figure.axes[0].lines)
    assert fitted == pytest.approx(measured)


def test_pages_link_to_their_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(results_page, "FOLDER", tmp_path)
    page = Page("some_study", "command", 1.0)
    page.figure(drawn(), "Scored [percent] against predicted:")
    page.figure(drawn(1), "Again:")
    linked = re.findall(r"!\[(.*)\]\((.*)\)", page.write(Console(quiet=True)).read_text())
    assert linked == [("Scored (percent) against predicted:", "some_study_1.svg"), ("Again:", "some_study_2.svg")]
    assert all((tmp_path / file).stat().st_size > 1000 for _, file in linked)
