"""Layers are surveyed alike by one process and by several."""

import numpy as np
import pytest
import torch
from made_up_device import FakeLatency
from tiny_networks import Residual, build, images, labels

from plywise.compressors.errors import ModelError
from plywise.compressors.structure.low_rank import LowRank
from plywise.env.prices.pricing import Pricer
from plywise.env.prices.sensitivity import ProbeSamples
from plywise.env.prices.survey import Survey, surveyed
from plywise.env.subject import Subject
from plywise.env.task.samples import labelled


@pytest.fixture
def survey_in(tmp_path, monkeypatch):
    """Returns a function that prepares the survey of a network with a cache of its own."""

    def prepare(name):
        monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path / name))
        subject = Subject(
            build(Residual),
            labelled(images(48, 1), labels(48, 1)),
            labelled(images(64, 3), labels(64, 3)),
            latency=FakeLatency(),
        )
        probed = ProbeSamples.of(subject.validation, subject.reference)
        return Survey(Pricer(subject.bank, subject.whole), probed, subject.store, subject.key)

    return prepare


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_several_processes_find_what_one_finds(survey_in, two_threads):
    several, one = survey_in("several"), survey_in("one")
    found = list(surveyed(several))
    assert not several.pricer.bank._entries  # compressed elsewhere, ...
    layer = several.layers[0]
    recipe = next(recipe for recipe in several.pricer.recipes[layer.name] if recipe.techniques)
    several.pricer.bank._made = None  # ... and not again
    several.pricer.bank.entry(layer.name, recipe)
    torch.set_num_threads(1)
    expected = list(surveyed(one))
    assert one.pricer.bank._entries
    assert [each.layer for each in found] == [layer.name for layer in one.layers]
    for mine, its in zip(found, expected, strict=True):
        assert mine.layer == its.layer
        assert np.array_equal(mine.sensitivity.divergence, its.sensitivity.divergence)
        assert np.array_equal(mine.sensitivity.output_error, its.sensitivity.output_error)
        assert mine.sizes == its.sizes
    for layer in one.layers:
        assert several.pricer.sizes_of(layer) == one.pricer.sizes_of(layer)


def test_what_is_ours_is_told_as_ours(survey_in, two_threads, monkeypatch):
    def fail(*_):
        raise ModelError("this layer is like no other")

    monkeypatch.setattr(LowRank, "compress", fail)
    with pytest.raises(ModelError, match=r"^this layer is like no other$"):
        list(surveyed(survey_in("failing")))
