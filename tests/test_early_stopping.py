"""Plans that can no longer be of use are not run to the end; those that can always are."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from plywise.env.score import early_stopping
from plywise.env.score.early_stopping import RISK, EarlyStopping, can_stop, most_mean, most_right


@pytest.mark.parametrize(
    ("right", "seen", "total"), [(0, 10, 40), (7, 10, 40), (10, 10, 40), (5, 5, 5), (60, 100, 800)]
)
def test_no_more_can_be_right_than_a_draw_allows(right: int, seen: int, total: int) -> None:
    most = most_right(right, seen, total, 0.01)
    assert right <= most <= total - (seen - right)
    assert hypergeom.cdf(right, total, most, seen) >= 0.01
    if most < total - (seen - right):
        assert hypergeom.cdf(right, total, most + 1, seen) < 0.01


def values(right: np.ndarray) -> torch.Tensor:
    """The values of right and wrong answers, points."""
    return 100.0 * torch.from_numpy(right).float()


def run(right: np.ndarray, needed: float, batch: int) -> tuple[EarlyStopping, int]:
    """Shows values of right and wrong answers batch by batch; returns what stops, and how many it has seen."""
    stopping, seen = EarlyStopping(torch.full((len(right),), 100.0), lambda look: look.most_accuracy < needed), 0
    for part in values(right).split(batch):
        seen += len(part)
        if stopping(part):
            break
    return stopping, seen


def test_a_plan_far_off_stops_at_the_first_look_and_a_near_one_never() -> None:
    generator = np.random.default_rng(0)
    for share, seen in ((0.3, 250), (0.5, 250), (0.95, 2000)):
        stopping, found = run(generator.random(2000) < share, 90.0, 50)
        assert found == seen
        assert (stopping.stopped is not None) == (seen < 2000)
    assert run(np.arange(2000) % 7 > 0, 90.0, 50)[1] == 500  # 85.7 %


def test_plans_good_enough_are_stopped_no_more_often_than_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly as many right outputs as needed, in random order: the hardest case."""
    monkeypatch.setattr(early_stopping, "most_right", cache(most_right))  # the same counts come again and again
    generator = np.random.default_rng(0)
    right = np.arange(400) < 280
    stops = [run(generator.permutation(right), 70.0, 10)[0].stopped for _ in range(3000)]
    assert sum(stop is not None for stop in stops) <= 3 * RISK * 3000


def test_parts_of_a_right_answer_bound_nothing_where_the_original_has_none() -> None:
    stopping = EarlyStopping(torch.full((64,), 100.0), lambda look: True)
    assert not any(stopping(part) for part in torch.full((64,), 50.0).split(8))
    assert stopping.looks == []
    assert not can_stop(torch.full((64,), 50.0), None)


def test_a_look_falls_due_once_however_large_the_batches() -> None:
    stopping = EarlyStopping(values(np.arange(64) >= 5), lambda look: False)
    for size in (20, 4, 4, 4, 4, 28):
        assert not stopping(values(np.zeros(size, bool)))
    # After 20, which is past an eighth and a quarter, and after 32; all 64 are no early look.
    assert [look.seen for look in stopping.looks] == [20 / 64, 32 / 64]
    assert [look.drop for look in stopping.looks] == pytest.approx([100 * 15 / 20, 100 * 27 / 32])  # on the same images
    assert stopping.looks[0].most_accuracy > stopping.looks[1].most_accuracy


# Values between bounds


@pytest.mark.parametrize(("seen", "total"), [(50, 400), (200, 400), (201, 400), (399, 400)])
def test_a_mean_is_bounded_as_theorem_says(seen: int, total: int) -> None:
    """The chance of a mean as low as this one is the risk, by both cases of the theorem."""
    left = 1 - (seen - 1) / total if seen <= total / 2 else (1 - seen / total) * (1 + 1 / seen)
    excess = (most_mean(0.5, seen, total, (-1e4, 1e4), 0.01) - 0.5) / 2e4
    whole = ((0.5 * seen + 1e4 * (total - seen)) / total - 0.5) / 2e4  # no more is left to come
    assert excess == pytest.approx(min(whole, math.sqrt(left * math.log(100) / (2 * seen))), rel=1e-9)


def test_a_mean_is_no_more_than_what_is_left_allows() -> None:
    assert most_mean(30.0, 8, 8, (0.0, 100.0), 1e-3) == 30.0
    assert most_mean(30.0, 1, 8, (0.0, 100.0), 1e-3) == pytest.approx((30.0 + 7 * 100.0) / 8)
    bounds = [most_mean(30.0, seen, 800, (0.0, 100.0), 1e-3) for seen in (100, 200, 400, 700)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > most_mean(30.0, 100, 800, (0.0, 100.0), 1e-2) > most_mean(30.0, 100, 800, (20.0, 60.0), 1e-2)


POPULATIONS = {
    "both ends": lambda generator: np.where(generator.random(400) < 0.5, -2.0, 3.0),
    "few low": lambda generator: np.where(generator.random(400) < 0.03, -2.0, 3.0),
    "few high": lambda generator: np.where(generator.random(400) < 0.03, 3.0, -2.0),
    "anywhere": lambda generator: generator.uniform(-2.0, 3.0, 400),
}


@pytest.mark.parametrize("kind", POPULATIONS)
def test_a_mean_is_more_than_its_bound_no_more_often_than_promised(kind: str) -> None:
    generator = np.random.default_rng(0)
    population, risk = POPULATIONS[kind](generator), 0.1
    drawn = np.array([generator.permutation(population) for _ in range(2000)])
    for seen in (50, 100, 200, 300):
        means = drawn[:, :seen].mean(axis=1)
        bounds = np.array([most_mean(float(mean), seen, 400, (-2.0, 3.0), risk) for mean in means])
        assert (bounds < population.mean() - 1e-9).mean() <= risk
        assert (bounds <= 3.0).all()


def test_plans_of_values_between_bounds_are_stopped_where_hopeless_and_not_where_just_good_enough() -> None:
    generator = np.random.default_rng(0)
    population = np.where(generator.random(400) < 0.7, 3.0, -2.0)

    def stops(needed: float) -> list[float]:
        """Returns after which share of the samples each of 1000 random orders is stopped."""
        found = []
        for _ in range(1000):
            stopping = EarlyStopping(torch.full((400,), 3.0), lambda look: look.most_accuracy < needed, (-2.0, 3.0))
            any(stopping(part) for part in torch.from_numpy(generator.permutation(population)).split(10))
            found.extend([stopping.stopped.seen] if stopping.stopped else [])
        return found

    assert len(stops(float(population.mean()))) <= 3 * RISK * 1000
    far = stops(2.9)  # of at most 3, where the mean is 1.2
    assert len(far) == 1000
    assert max(far) < 1 / 2


def test_plans_can_be_stopped_where_values_are_right_answers_or_bounded() -> None:
    right = values(np.arange(8) > 2)
    assert can_stop(right, None)
    assert can_stop(right / 3, (0.0, 100.0))
    assert not can_stop(right / 3, None)
    assert not can_stop(None, (0.0, 100.0))
