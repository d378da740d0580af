"""Normalisation of images: given, usual or measured, and what is said where it is not the network's."""

import math

import pytest
import torch

from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.experiments.commands.near_chance import chance_warning, near_chance
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.data.normalisation import (
    GIVEN,
    MEASURED,
    Normalisation,
    make_normalisation,
    reported_normalisation,
)
from plywise.experiments.networks import zoo


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        (0.5, 0.25, ((0.5,), (0.25,))),
        ("0.5", "0.25", ((0.5,), (0.25,))),
        ("0.1,0.2, 0.3", 1, ((0.1, 0.2, 0.3), (1.0,))),
        ("[0.1, 0.2]", [0.3, 0.4], ((0.1, 0.2), (0.3, 0.4))),
    ],
)
def test_numbers_and_texts_are_taken(mean, std, expected):
    found = make_normalisation(mean, std)
    assert (found.mean, found.std, found.source) == (*expected, GIVEN)


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        (0.5, None, "mean is given without std: give both"),
        (None, "0.5", "std is given without mean: give both"),
        (0.5, 0.0, "std=0 must be above 0"),
        ("0.5,0.5", "0.2,-0.2", "std=0.2,-0.2 must be above 0"),
        (math.nan, 0.5, "mean=nan must be finite numbers"),
        (0.5, "inf", "std=inf must be finite numbers"),
        ("", "0.5", "mean='' must be a number, or one for each channel"),
        ("half", 0.5, "mean='half' must be a number"),
        ([], 0.5, "mean= must be finite numbers"),
        (125.3, 63.0, "must be those of pixels in .*divide what is meant for pixels from 0 to 255 by 255"),
    ],
)
def test_what_is_no_normalisation_is_refused(mean, std, said):
    with pytest.raises(ConfigurationError, match=said):
        make_normalisation(mean, std)


def test_nothing_given_is_none():
    assert make_normalisation(None, None) is None


def test_one_number_is_for_every_channel_and_others_must_fit():
    each = make_normalisation(0.5, "0.1,0.2,0.3").for_channels(3)
    assert (each.mean, each.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    with pytest.raises(ConfigurationError, match="has 3 numbers, the images have 1 channel: give one"):
        load_dataset("digits", normalisation=make_normalisation(0.5, "0.1,0.2,0.3"))


def test_a_given_normalisation_is_used_in_every_split():
    usual, given = load_dataset("digits"), load_dataset("digits", normalisation=make_normalisation(0.25, 0.5))
    assert usual.normalisation.source == MEASURED
    assert given.normalisation == Normalisation((0.25,), (0.5,), GIVEN)
    for split, before in ((given.train, usual.train), (given.validation, usual.validation), (given.test, usual.test)):
        assert torch.equal(split.images, before.images)
        assert torch.allclose(split.inputs(), (split.images / 255 - 0.25) / 0.5)


def test_a_report_gives_it_back_and_nonsense_is_told():
    given = Normalisation((0.25,), (0.5,), GIVEN)
    assert reported_normalisation(given.report()) == given
    assert reported_normalisation(None) is None
    for nonsense in ({"mean": [0.5]}, {"mean": 3, "std": [1.0], "source": ""}, {"mean": [0], "std": [0], "source": ""}):
        with pytest.raises(FileFormatError, match=r"normalisation is damaged .* give --mean and --std"):
            reported_normalisation(nonsense)


def test_networks_trained_with_another_normalisation_are_others(tmp_path, monkeypatch):
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path))
    fitted = []
    monkeypatch.setattr(zoo, "fit", lambda network, split, *_: fitted.append(split.mean))
    for normalisation in (None, make_normalisation(0.25, 0.5), make_normalisation(0.250001, 0.5), None):
        zoo.trained("digits-mlp", load_dataset("digits", normalisation=normalisation))
    assert fitted[1:] == [(0.25,), (0.250001,)]


@pytest.mark.parametrize(
    ("accuracy", "classes", "near"),
    [(10.0, 10, True), (20.0, 10, True), (20.1, 10, False), (62.5, 2, True), (63.0, 2, False), (1.9, 100, True)],
)
def test_near_chance(accuracy, classes, near):
    assert near_chance(accuracy, classes) == near


def test_the_warning_names_the_normalisation_and_the_way_out():
    dataset = load_dataset("digits", normalisation=make_normalisation(0.25, 0.5))
    said = chance_warning(11.0, dataset)
    assert "the original reaches 11.0 %, hardly more than guessing (10.0 %)" in said
    assert "normalised with mean 0.25, std 0.5 (given)" in said
    assert "--mean and --std" in said
    assert chance_warning(90.0, dataset) is None
