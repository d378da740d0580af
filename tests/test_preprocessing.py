"""Preprocessing of images: given, usual or measured, and what is said where it is not the network's."""

import json
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.experiments.commands import usual_preprocessing
from plywise.experiments.commands.near_chance import chance_warning, near_chance
from plywise.experiments.commands.study import load_both
from plywise.experiments.commands.usual_preprocessing import preprocessing_warning
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.data.preprocessing import (
    GIVEN,
    MEASURED,
    NOTHING_GIVEN,
    USUAL,
    Preprocessing,
    make_preprocessing,
    reported_preprocessing,
)
from plywise.experiments.data.splits import LabelledImages, assemble
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
    found = make_preprocessing(mean, std)
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
        make_preprocessing(mean, std)


def test_nothing_given_leaves_all_to_the_images():
    assert make_preprocessing() == NOTHING_GIVEN
    assert make_preprocessing().options() == {}


@pytest.mark.parametrize(
    ("size", "expected"), [(224, (224, 224)), ("224", (224, 224)), ("192x256", (192, 256)), ([3, np.int64(4)], (3, 4))]
)
def test_sizes_are_taken(size, expected):
    assert make_preprocessing(size=size).size == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": "224x"}, "size='224x' must be what the network reads"),
        ({"size": 2.5}, "size=2.5 must be what"),
        ({"size": True}, "size=True must be what"),
        ({"size": [1, 2, 3]}, "must be what the network reads: whole pixels such as 224, or height x width"),
        ({"size": 0}, "size=0x0 must be 1 to 8192 pixels a side"),
        ({"size": "999999999"}, "must be 1 to 8192 pixels"),
        ({"crop": 0.0}, "crop=0 must lie between 0.1 and 1"),
        ({"crop": 1.5}, "crop=1.5 must lie between"),
        ({"crop": math.nan}, "crop=nan must lie between"),
        ({"crop": "half"}, "crop='half' must be a number"),
        ({"channels": "rgbb"}, "unknown order of channels 'rgbb'. Did you mean 'rgb'"),
        ({"channels": 3}, "channels=3 must be rgb, bgr, gray"),
    ],
)
def test_what_no_network_reads_is_refused(options, said):
    with pytest.raises(ConfigurationError, match=said):
        make_preprocessing(**options)


def test_a_crop_needs_a_size():
    with pytest.raises(ConfigurationError, match=r"crop=0.9 is given without a size.*--size 224"):
        load_dataset("digits", preprocessing=make_preprocessing(crop=0.9))


def test_what_is_given_goes_first():
    reported = Preprocessing((0.5,), (0.25,), (8, 8), 0.875, "rgb", MEASURED)
    assert NOTHING_GIVEN.or_else(reported) == reported
    found = make_preprocessing(0.1, 0.2, crop=1).or_else(reported)
    assert found == Preprocessing((0.1,), (0.2,), (8, 8), 1.0, "rgb", GIVEN)


def test_options_give_the_same_again():
    whole = make_preprocessing("0.1,0.2,0.3", 0.500001, "192x256", 0.9, "bgr")
    assert make_preprocessing(**whole.options() | {"crop": float(whole.options()["crop"])}) == whole
    assert str(whole) == "bgr, 192x256 cut out of 213x284, pixels in [0, 1], mean 0.1,0.2,0.3, std 0.5 (given)"


def test_a_task_prepares_its_own_data():
    with pytest.raises(ConfigurationError, match="mean, std, size say what is done to the images of a dataset"):
        load_both("zoo:stdlib-gpt", None, None, make_preprocessing(0.5, 0.5, 8))


def test_one_number_is_for_every_channel_and_others_must_fit():
    each = make_preprocessing(0.5, "0.1,0.2,0.3").for_channels(3)
    assert (each.mean, each.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    with pytest.raises(ConfigurationError, match="has 3 numbers, the images have 1 channel: give one"):
        load_dataset("digits", preprocessing=make_preprocessing(0.5, "0.1,0.2,0.3"))


def test_a_given_normalisation_is_used_in_every_split():
    usual, given = load_dataset("digits"), load_dataset("digits", preprocessing=make_preprocessing(0.25, 0.5))
    assert usual.preprocessing.source == MEASURED
    assert given.preprocessing == Preprocessing((0.25,), (0.5,), (8, 8), 1.0, "gray", GIVEN)
    for split, before in ((given.train, usual.train), (given.validation, usual.validation), (given.test, usual.test)):
        assert torch.equal(split.images, before.images)
        assert torch.allclose(split.inputs(), (split.images / 255 - 0.25) / 0.5)


def test_a_report_gives_it_back_and_nonsense_is_told():
    given = Preprocessing((0.25,), (0.5,), (8, 9), 0.9, "bgr", USUAL)
    assert reported_preprocessing(json.loads(json.dumps(given.report()))) == given
    assert reported_preprocessing(None) == NOTHING_GIVEN
    for nonsense in ({"mean": [0.5]}, [], 3, given.report() | {"size": [0, 1]}, given.report() | {"crop": "x"}):
        with pytest.raises(FileFormatError, match=r"report's preprocessing is damaged .* compress again"):
            reported_preprocessing(nonsense)


def test_networks_trained_with_another_normalisation_are_others(tmp_path, monkeypatch):
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path))
    fitted = []
    monkeypatch.setattr(zoo, "fit", lambda network, split, *_: fitted.append(split.mean))
    for given in (NOTHING_GIVEN, make_preprocessing(0.25, 0.5), make_preprocessing(0.250001, 0.5), NOTHING_GIVEN):
        zoo.trained("digits-mlp", load_dataset("digits", preprocessing=given))
    assert fitted[1:] == [(0.25,), (0.250001,)]


@pytest.mark.parametrize(
    ("accuracy", "classes", "near"),
    [(10.0, 10, True), (20.0, 10, True), (20.1, 10, False), (62.5, 2, True), (63.0, 2, False), (1.9, 100, True)],
)
def test_near_chance(accuracy, classes, near):
    assert near_chance(accuracy, classes) == near


def test_the_warning_names_the_normalisation_and_the_way_out():
    dataset = load_dataset("digits", preprocessing=make_preprocessing(0.25, 0.5))
    said = chance_warning(11.0, dataset)
    assert "the original reaches 11.0 %, hardly more than guessing (10.0 %)" in said
    assert "prepared as gray, 8x8, pixels in [0, 1], mean 0.25, std 0.5 (given)" in said
    assert "--mean and --std" in said
    assert chance_warning(90.0, dataset) is None


# Another preprocessing that does better


def photos(preprocessing, channels=3, count=200):
    """Images of four classes, that differ in the level of red or of all channels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 4
    images = torch.randint(90, 110, (count, channels, 4, 4), dtype=torch.uint8, generator=generator)
    images[:, 0] = (40 + 50 * labels[:, None, None]).to(torch.uint8) + images[:, 0] // 10
    parts = LabelledImages(images.flip(1) if preprocessing.channels == "bgr" else images, labels)
    done = preprocessing.for_images({(4, 4): count}, colour=channels == 3)
    return assemble("folder", tuple("abcd"), parts, parts, parts, preprocessing=done)


class Levels(nn.Module):
    """Tells classes apart by the level of red, as it was prepared: the class whose level is nearest."""

    def __init__(self, mean, std, red=0):
        super().__init__()
        self.red, self.levels = red, ((44.5 + 50 * torch.arange(4) + 5) / 255 - mean) / std

    def forward(self, images):
        return -(images[:, self.red].mean((1, 2))[:, None] - self.levels).abs()


@pytest.mark.parametrize(
    ("network", "given", "said"),
    [
        (
            Levels(0.485, 0.229),
            make_preprocessing(0.9, 0.9),
            r"with ImageNet's mean and std\. .* give --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225:",
        ),
        (Levels(0.0, 1.0), NOTHING_GIVEN, r"100.0 % with pixels in \[0, 1\].* give --mean 0,0,0 --std 1,1,1:"),
        (Levels(0.5, 0.5), make_preprocessing(0.0, 1.0), r"with pixels in \[-1, 1\]"),
        (Levels(0.0, 1 / 255), make_preprocessing(0.0, 1.0), r"with pixels from 0 to 255.* --std 0.003922,"),
        (
            Levels(0.5, 0.5, red=2),
            make_preprocessing(0.5, 0.5),
            r"reaches 2\d\.\d % of 200 .* but 100.0 % with channels in the order bgr.* give --channels bgr:",
        ),
        (
            Levels(0.5, 0.5),
            make_preprocessing(0.5, 0.5, channels="bgr"),
            r"with channels in the order rgb.* give --channels rgb:",
        ),
    ],
)
def test_what_does_clearly_better_is_named_with_both_figures(network, given, said):
    found = preprocessing_warning(network, photos(given))
    assert found is not None
    assert re.search(said, found), found
    assert "as they are prepared now (" in found


def test_the_other_order_is_found_on_top_of_other_numbers():
    said = preprocessing_warning(Levels(0.0, 1.0, red=2), photos(make_preprocessing(1.5, 0.1)))
    assert said is not None
    assert "with pixels in [0, 1] and channels in the order bgr" in said
    assert "give --mean 0,0,0 --std 1,1,1 --channels bgr:" in said


def test_one_channel_has_no_order():
    said = preprocessing_warning(Levels(0.5, 0.5), photos(make_preprocessing(0.0, 1.0), channels=1))
    assert said is not None
    assert "with pixels in [-1, 1]" in said
    assert "give --mean 0.5 --std 0.5:" in said


class Chance(nn.Module):
    def forward(self, images):
        return torch.sin(1000 * images[:, 0, 0])


class Picky(Levels):
    def forward(self, images):
        if images.min() < 0:
            raise ValueError("takes no negative pixels")
        return super().forward(images)


class Guess(nn.Module):
    """Finds half of the darkest of four classes with ImageNet's numbers, none with others, and one class always."""

    def forward(self, images):
        dark = ((images[:, 0].mean((1, 2)) < -0.6) & (images[:, 1, 0, 0] < -0.29)).float()
        return torch.stack([dark, 1.0 - dark, *torch.zeros(2, len(images))], 1)


def test_a_network_that_guesses_either_way_is_not_asked_for_another_preprocessing(monkeypatch):
    data = photos(make_preprocessing(0.0, 1.0))
    assert preprocessing_warning(Guess(), data) is None
    monkeypatch.setattr(usual_preprocessing, "near_chance", lambda *_: False)
    assert preprocessing_warning(Guess(), data) is not None


@pytest.mark.parametrize("network", [Levels(0.0, 1.0), Chance(), Picky(0.0, 1.0)])
def test_nothing_is_said_where_nothing_is_clearly_better(network):
    assert preprocessing_warning(network, photos(make_preprocessing(0.0, 1.0))) is None


def test_too_few_images_tell_nothing():
    assert preprocessing_warning(Levels(0.5, 0.5), photos(make_preprocessing(0.0, 1.0), count=8)) is None
