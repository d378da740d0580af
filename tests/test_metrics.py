"""Scores: right answers, agreement with the original, and functions of users."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from plywise.compressors.errors import ConfigurationError
from plywise.env.task.judge import CLASSIFIER, Judge, Reference, Silenced
from plywise.env.task.metrics import UserMetric, agreement
from plywise.env.task.outputs import checked_distance, default_distance, divergences, logits_in, relative_errors
from plywise.env.task.samples import Samples, labelled


def call(model, batch):
    return model(batch)


def inputs(count=96, seed=0):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


def linear(outputs=4, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(5, outputs).eval()


def batches(count=96, size=8):
    return list(inputs(count).split(size))


# The original as the reference


def test_classifiers_agree_where_their_largest_logit_is_the_same():
    first, second = linear(seed=0), linear(seed=1)
    same = float((first(inputs()).argmax(1) == second(inputs()).argmax(1)).float().mean())
    found = agreement(Reference(first, call)).score(second, batches(), call)
    assert found.value == pytest.approx(100 * same)
    assert 0 < same < 1
    assert agreement(Reference(first, call)).score(first, batches(), call).value == 100.0


def test_other_outputs_agree_by_their_relative_error():
    original, off = linear(outputs=1), linear(outputs=1)
    with torch.no_grad():
        off.bias += 0.5 * float(original(inputs()).std())
    found = agreement(Reference(original, call)).score(off, [inputs()], call)
    assert found.value == pytest.approx(75.0, abs=0.5)  # a quarter of the variance


def test_what_guessing_reaches_is_known_for_logits():
    assert agreement(Reference(linear(), call)).chance(linear()(inputs())) == 25.0
    assert float(Silenced(linear())(inputs()).abs().max()) == 0.0


# Metrics of users


def mean_error(model, given):
    values = torch.cat([-(model(batch) - 1).abs().mean(1) for batch in given])
    return float(values.mean()), values


def test_values_of_items_are_kept_and_units_make_points():
    found = UserMetric(mean_error, point=0.02).score(linear(), batches(), call)
    with torch.no_grad():
        value, values = mean_error(linear(), batches())
    assert found.value == pytest.approx(value / 0.02)
    assert torch.allclose(found.values, values.double() / 0.02)


def test_a_plain_number_or_values_of_another_mean_leave_no_values():
    for metric in (lambda model, given: 3.5, lambda model, given: (3.5, torch.zeros(96))):
        found = UserMetric(metric).score(linear(), batches(), call)
        assert (found.value, found.values) == (3.5, None)


@pytest.mark.parametrize("value", [2, torch.tensor(2.0), torch.tensor([2.0]), 2.0])
def test_any_number_will_do(value):
    assert UserMetric(lambda model, given: value).score(linear(), batches(), call).value == 2.0


def raising(model, given):
    raise KeyError("labels")


def training(model, given):
    model.train()
    return 1.0


def trained_inside(model, given):
    model.train()
    model(given[0])
    model.eval()
    return 1.0


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (raising, "'raising' raises KeyError"),
        (lambda model, given: "good", "must return a number"),
        (lambda model, given: None, "must return a number"),
        (lambda model, given: torch.zeros(3), "must return a number"),
        (lambda model, given: math.nan, "returns nan"),
        (training, "training mode"),
        (trained_inside, "training mode"),
    ],
)
def test_a_metric_that_cannot_be_used_is_told(metric, said):
    with pytest.raises(ConfigurationError, match=said):
        UserMetric(metric).score(linear(), batches(), call)


def test_a_metric_is_asked_for_portions_where_some_may_be_enough():
    seen = []

    def metric(model, given):
        seen.append(sum(map(len, given)))
        return mean_error(model, given)

    whole = UserMetric(metric).score(linear(), batches(), call, lambda values: False)
    assert seen == [16, 8, 24, 48]  # up to an eighth (batches are not cut), a quarter, half, all
    with torch.no_grad():
        assert whole.value == pytest.approx(mean_error(linear(), batches())[0])
    seen.clear()
    UserMetric(metric).score(linear(), batches(), call, lambda values: len(seen) == 2)
    assert seen == [16, 8]


def test_a_metric_that_is_the_mean_of_its_values_for_the_original_alone_is_run_to_the_end():
    """Weighted right answers: their mean where all are right, and another number where some are wrong."""
    original, plan = linear(seed=0), linear(seed=1)
    given = [(batch, original(batch).argmax(1)) for batch in batches()]

    def metric(model, some):
        right = torch.cat([(model(batch).argmax(1) == labels).double() for batch, labels in some])
        weights = torch.cat([1.0 + labels for _, labels in some]).double()
        return 100.0 * float(right @ weights / weights.sum()), 100.0 * right

    asked = []
    assert UserMetric(metric).score(original, given, call).values is not None
    found = UserMetric(metric).score(plan, given, call, lambda values: bool(asked.append(values)))
    assert (found.value, found.values) == (metric(plan, given)[0], None)
    assert not asked


# Outputs


def test_logits_are_found_where_they_are():
    assert logits_in(torch.zeros(2, 3)) is not None
    assert logits_in({"logits": torch.zeros(2, 5, 3)}) is not None
    for other in (torch.zeros(2, 1), torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), (torch.zeros(2, 3),), {"x": 1}):
        assert logits_in(other) is None
    assert default_distance(torch.zeros(2, 3)) is divergences
    assert default_distance(torch.zeros(2, 1)) is relative_errors


def test_divergences_are_those_of_each_item():
    after, before = torch.randn(6, 4), torch.randn(6, 4)
    expected = (before.softmax(1) * (before.log_softmax(1) - after.log_softmax(1))).sum(1)
    assert torch.allclose(divergences(after, before), expected, atol=1e-6)
    several = divergences({"logits": after.view(2, 3, 4)}, {"logits": before.view(2, 3, 4)})
    assert torch.allclose(several, expected.view(2, 3).mean(1), atol=1e-6)


def test_relative_errors_are_means_over_tensors_and_tell_other_shapes():
    before = [torch.randn(50, 3), torch.randn(50, 2, 2)]
    after = [before[0] + before[0].std() * 0.1, before[1]]
    found = relative_errors(after, before)
    assert found.shape == (50,)
    assert float(found.mean()) == pytest.approx(0.005, rel=0.2)
    assert float(relative_errors([torch.zeros(3, 4)], [torch.zeros(2, 4)])) == 1.0


@pytest.mark.parametrize(
    ("distance", "said"),
    [
        (lambda a, b: (a - b).mean(), r"returns the shape \(\).*\(6,\)"),
        (lambda a, b: (a - b).abs().mean(1)[:3], r"returns the shape \(3,\)"),
        (lambda a, b: -(a - b).abs().mean(1), "at least 0"),
        (lambda a, b: (a - b).abs().mean(1) * math.nan, "at least 0"),
        (lambda a, b: a["logits"], "the distance raises"),
    ],
)
def test_a_distance_that_cannot_be_used_is_told(distance, said):
    with pytest.raises(ConfigurationError, match=said):
        checked_distance(distance)(torch.ones(6, 2), torch.zeros(6, 2))


# What ranks channels


def test_the_objective_is_the_loss_else_the_networks_own_labels_else_any_outputs():
    generator = torch.Generator().manual_seed(0)
    x, model = inputs(), linear()
    batch = x, torch.arange(96) % 4
    assert CLASSIFIER.objective(model(x), batch, generator) == F.cross_entropy(model(x), batch[1])
    for outputs in (model(x), {"a": model(x)}):
        judge = Judge(call, agreement(Reference(model, call)), divergences)
        (gradient,) = torch.autograd.grad(judge.objective(outputs, x, generator), model.weight)
        assert float(gradient.abs().min()) > 0


# Samples


def test_samples_are_scored_by_their_judge_and_keep_it():
    samples = labelled(inputs(), linear()(inputs()).argmax(1))
    assert samples.score(linear()).value == 100.0
    assert samples.first(10).score(linear()).value == 100.0
    assert samples.shuffled(3).judge is samples.judge
    assert samples.digest() != samples.judged_by(Judge(call, CLASSIFIER.metric, divergences, digest="other")).digest()


def test_samples_of_several_shapes_keep_their_batches():
    ragged = Samples([torch.zeros(4, 3), torch.zeros(4, 5), torch.zeros(2, 3)], CLASSIFIER)
    assert (len(ragged), ragged.even) == (10, False)
    assert ragged.shuffled() is ragged
    assert ragged.joined(100).shape == (4, 3)
    assert [len(batch) for batch in ragged.first(6)] == [4, 2]
