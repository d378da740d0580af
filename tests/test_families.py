import math
import textwrap
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from plywise.compressors.errors import DataError
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.families import (
    detection,
    language_modelling,
    pasted_digits,
    segmentation,
    source_snippets,
    standard_library,
    tables,
    tones,
)
from plywise.experiments.families.average_precision import mean_average_precision, overlaps
from plywise.experiments.families.bert import Bert, TextClasses
from plywise.experiments.families.classification import accuracy
from plywise.experiments.families.detector import Detector
from plywise.experiments.families.language_models import GPT, GRULanguageModel

SPLITS = ("train", "validation", "test")
DATA = {
    "sequences": language_modelling.sequences,
    "snippets": source_snippets.snippets,
    "masks": segmentation.masks,
    "scenes": detection.scenes,
    "cancer": lambda split: tables.table("cancer", split),
    "diabetes": lambda split: tables.table("diabetes", split),
    "chords": tones.chords,
}


def columns(batch):
    return list(batch.values()) if isinstance(batch, dict) else list(batch) if isinstance(batch, tuple) else [batch]


def items(batches):
    return {row.numpy().tobytes() for batch in batches for row in columns(batch)[0]}


class Fixed(nn.Module):
    """Puts out the same whatever it is given."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, *inputs):
        return self.outputs


# Data


@pytest.mark.parametrize("name", DATA)
def test_splits_share_nothing_and_are_the_same_each_time(name):
    found = {split: DATA[name](split) for split in SPLITS}
    for one, other in combinations(SPLITS if name != "snippets" else (), 2):  # some files begin with the same lines
        assert not items(found[one]) & items(found[other])
    pasted_digits.pasted_digits.cache_clear()
    again = DATA[name]("validation")
    assert len(again) == len(found["validation"])
    for before, after in zip(found["validation"], again, strict=True):
        assert all(torch.equal(*pair) for pair in zip(columns(before), columns(after), strict=True))
    assert sum(len(columns(batch)[0]) for batch in again) <= 2000


def test_modules_and_files_of_the_splits_are_not_the_same():
    names = [name for split in SPLITS for name in language_modelling.MODULES[split]]
    assert len(names) == len(set(names))
    for label in range(len(source_snippets.PACKAGES)):
        texts = [text for split in SPLITS for text in source_snippets.files_of(split)[label]]
        assert len(set(texts)) == len(texts)


def test_first_items_hold_all_classes():
    assert len(source_snippets.snippets("train")[0]["labels"].unique()) == 7
    assert len(tones.chords("train")[0][1].unique()) >= 20
    digits = detection.scenes("train")[0]["targets"][..., 4]
    assert set(range(10)) <= set(digits.unique().tolist())


def test_sources_are_those_of_the_python_that_runs(tmp_path, monkeypatch):
    assert standard_library.module_source("textwrap") == Path(textwrap.__file__).read_bytes()
    assert b"json" in standard_library.module_source("json")
    assert standard_library.module_source("no_such_module") == b""
    monkeypatch.setattr(standard_library, "folder", lambda: tmp_path)
    with pytest.raises(DataError, match=f"{tmp_path} have 1 bytes .* 10 are needed; install them"):
        standard_library.texts(["textwrap", "json"], 10)


def test_snippets_are_padded_and_masked():
    batch = source_snippets.snippets("validation")[0]
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ids.shape == mask.shape == (64, source_snippets.LENGTH)
    assert torch.equal(ids != 0, mask == 1)
    assert (ids[:, 0] == source_snippets.START).all()
    assert set(mask.sum(1).tolist()) <= set(range(source_snippets.LENGTHS[0] + 1, source_snippets.LENGTH + 1))
    assert ids.max() < source_snippets.VOCABULARY


def test_pasted_digits_are_those_of_the_split_and_boxes_hold_their_pixels(monkeypatch):
    digits = load_dataset("digits")
    threes = digits.validation.select(torch.nonzero(digits.validation.labels == 3)[:, 0])
    changed = type(digits)("digits", digits.classes, digits.train, threes, digits.test)
    monkeypatch.setattr(pasted_digits, "load_dataset", lambda name: changed)
    found = pasted_digits.pasted_digits.__wrapped__("validation")
    assert set(found.classes.unique().tolist()) == {0, 4}
    assert set(found.boxes[..., 4].unique().tolist()) == {-1, 3}
    for classes, boxes in zip(found.classes[:20], found.boxes[:20], strict=True):
        inside = torch.zeros_like(classes, dtype=torch.bool)
        for left, top, right, bottom, _ in boxes[boxes[:, 4] >= 0].long().tolist():
            inside[top:bottom, left:right] = True
            assert (classes[top, left:right] > 0).any()
            assert (classes[top:bottom, right - 1] > 0).any()
        assert not (classes[~inside] > 0).any()


def test_training_columns_are_standardised():
    inputs = torch.cat([batch[0] for batch in tables.table("diabetes", "train")])
    targets = torch.cat([batch[1] for batch in tables.table("diabetes", "train")])
    torch.testing.assert_close(inputs.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    assert targets.std(correction=0) == pytest.approx(1, abs=1e-5)


def test_a_chord_sounds_at_its_notes(monkeypatch):
    monkeypatch.setattr(tones, "NOISE", 0.0)
    monkeypatch.setattr(tones, "DETUNED", 0.0)
    waves, labels = tones.chords("test")[0]
    spectrum = np.abs(np.fft.rfft(waves[:, 0].numpy() * np.hanning(tones.LENGTH)))
    pitches = np.fft.rfftfreq(tones.LENGTH, 1 / tones.RATE)
    for row, label in zip(spectrum, labels.tolist(), strict=True):
        root = label % 12
        for note in (root, root + (4 if label < 12 else 3), root + 7):
            octaves = [tones.LOWEST * 2 ** (note % 12 / 12 + octave) for octave in (0, 1)]
            there = [row[np.abs(pitches - pitch) < 4].max() for pitch in octaves]
            assert max(there) > 50


# Networks


def test_a_gpt_sees_only_what_went_before_and_shares_its_matrix():
    network = GPT(16, 2, 2, 12).eval()
    symbols = torch.randint(256, (2, 12))
    changed = symbols.clone()
    changed[:, 7] += 1
    first, second = network(symbols), network(changed % 256)
    assert first.shape == (2, 12, 256)
    torch.testing.assert_close(first[:, :7], second[:, :7])
    assert not torch.allclose(first[:, 7], second[:, 7])
    assert network.embedding.weight is network.head.weight
    assert network(symbols[:, :5]).shape == (2, 5, 256)


def test_a_gru_sees_only_what_went_before():
    network = GRULanguageModel(8, 16)
    symbols = torch.randint(255, (2, 12))
    changed = symbols.clone()
    changed[:, 7] += 1
    torch.testing.assert_close(network(symbols)[:, :7], network(changed)[:, :7])


def test_padding_does_not_change_a_text():
    network = Bert(50, 12, 16, 2, 2, 3).eval()
    ids, mask = torch.randint(1, 50, (2, 12)), torch.ones(2, 12, dtype=torch.int64)
    mask[:, 8:] = 0
    long, short = network(ids, mask), network(ids[:, :8], mask[:, :8])
    assert isinstance(long, TextClasses)
    torch.testing.assert_close(long.logits, short.logits)


# Metrics, distances and losses


def test_accuracy_of_known_answers():
    labels = torch.tensor([1, 0, 2, 2])
    logits = F.one_hot(torch.tensor([1, 0, 2, 0]), 3).float()
    value, values = accuracy(Fixed(logits), [(torch.zeros(4), labels)])
    assert value == 75
    assert values.tolist() == [100, 100, 100, 0]
    batch = {"input_ids": torch.zeros(4), "attention_mask": torch.zeros(4), "labels": labels}
    value, values = source_snippets.accuracy(Fixed(TextClasses(logits, logits)), [batch])
    assert value == 75
    assert values.tolist() == [100, 100, 100, 0]


def test_bits_of_known_guesses():
    batch = torch.tensor([[7, 8, 9], [1, 1, 1]])
    even, value = Fixed(torch.zeros(2, 3, 256)), -8.0
    assert language_modelling.negative_bits_per_byte(even, [batch])[0] == pytest.approx(value)
    logits = torch.zeros(2, 3, 256)
    logits[0, 0, 8] = logits[0, 1, 9] = 100.0
    value, values = language_modelling.negative_bits_per_byte(Fixed(logits), [batch])
    assert values.tolist() == pytest.approx([0, -8], abs=1e-5)
    assert value == pytest.approx(-4)
    assert language_modelling.next_byte_loss(logits, batch) == pytest.approx(4 * math.log(2))


def test_mean_iou_of_known_masks():
    classes = torch.tensor([[[0, 0], [1, 1]]])
    answers = torch.tensor([[[0, 1], [1, 1]]])
    logits = F.one_hot(answers, segmentation.CLASSES).permute(0, 3, 1, 2).float()
    both = segmentation.mean_iou(Fixed(logits), [(torch.zeros(1), classes)])
    assert both == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)


def test_average_precision_of_known_boxes():
    box, other = [0.0, 0, 10, 10], [12.0, 12, 20, 20]
    targets = torch.tensor([[[*box, 3], [*other, 3], [*[-1.0] * 5]]])
    assert overlaps(torch.tensor(box), torch.tensor([5.0, 0, 15, 10])) == pytest.approx(1 / 3)
    wrong, twice = [12.0, 0, 20, 8, 3, 0.8], [0.0, 0, 10, 9, 3, 0.7]
    everything = torch.tensor([[[*box, 3, 0.9], [*other, 3, 0.1]]])
    assert mean_average_precision(everything, targets) == 100
    assert mean_average_precision(torch.tensor([[[*box, 3, 0.9], wrong, twice]]), targets) == 50
    # The second is found after one wrong and one repeated box: precision 2/4 there.
    late = torch.tensor([[[*box, 3, 0.9], wrong, twice, [*other, 3, 0.1]]])
    assert mean_average_precision(late, targets) == pytest.approx(75)
    assert mean_average_precision(torch.tensor([[[*box, 4, 0.9]]]), targets) == 0
    assert mean_average_precision(torch.full((1, 4, 6), -1.0), targets) == 0


def maps_of(targets, sure=9.0):
    """Returns what a network without fault puts out for targets `(n, most, 5)`."""
    found = []
    for scale, stride in enumerate(detection.STRIDES):
        side = pasted_digits.SIDE // stride
        maps = torch.zeros(len(targets), detection.OUTPUTS, side, side)
        maps[:, 0] = -sure
        for image, boxes in enumerate(targets):
            for left, top, right, bottom, digit in boxes[boxes[:, 4] >= 0].tolist():
                if (max(right - left, bottom - top) > detection.BORDER) == (scale == 1):
                    right_, down = (left + right) / 2 / stride, (top + bottom) / 2 / stride
                    cell = maps[image, :, int(down), int(right_)]
                    cell[:5] = torch.tensor(
                        [
                            sure,
                            right_ % 1,
                            down % 1,
                            math.log((right - left) / detection.USUAL[scale]),
                            math.log((bottom - top) / detection.USUAL[scale]),
                        ]
                    )
                    cell[5 + int(digit)] = 2 * sure
        found.append(maps)
    return found


def test_a_detector_without_fault_is_perfect():
    batch = detection.scenes("validation")[0]
    maps = maps_of(batch["targets"])
    assert detection.average_precision(Fixed(maps), [batch]) == 100
    assert detection.detection_loss(maps, batch) < 0.1
    boxes = detection.best_boxes(detection.decoded(maps))
    there = boxes[..., 4] >= 0
    assert torch.equal(there.sum(1), (batch["targets"][..., 4] >= 0).sum(1))
    torch.testing.assert_close(
        boxes[there][:, :4].sum(0), batch["targets"][batch["targets"][..., 4] >= 0][:, :4].sum(0)
    )


def test_r2_of_known_predictions():
    targets = torch.tensor([1.0, 2.0, 3.0, 6.0])
    batch = torch.zeros(4, 1), targets
    assert tables.r2(Fixed(targets[:, None]), [batch]) == 1
    assert tables.r2(Fixed(torch.full((4, 1), 3.0)), [batch]) == 0
    assert tables.r2(Fixed(torch.tensor([[1.0], [2.0], [3.0], [5.0]])), [batch]) == pytest.approx(1 - 1 / 14)
    assert tables.squared_error(torch.full((4, 1), 3.0), batch) == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("distance", "outputs"),
    [
        (language_modelling.mean_divergence, lambda: torch.randn(5, 3, 7)),
        (segmentation.pixel_divergence, lambda: torch.randn(5, 11, 4, 4)),
        (detection.detection_divergence, lambda: Detector(4, 15).eval()(torch.randn(5, 1, 24, 24))),
    ],
)
def test_distances_are_zero_on_the_same_and_grow(distance, outputs):
    torch.manual_seed(0)
    before, change = outputs(), outputs()

    def at(step):
        if isinstance(before, list):
            return [one + step * other for one, other in zip(before, change, strict=True)]
        return before + step * change

    none, small, large = (distance(at(step), before) for step in (0.0, 0.1, 0.3))
    assert none.shape == (5,)
    torch.testing.assert_close(none, torch.zeros(5), atol=1e-4, rtol=0)
    assert (small > 0).all()
    assert (large > small).all()
