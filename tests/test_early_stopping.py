"""Plans that can no longer be of use are not run to the end; those that can always are."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from plywise.env.score import early_stopping
from plywise.env.score.early_stopping import RISK, EarlyStopping, most_right


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


def test_a_look_falls_due_once_however_large_the_batches() -> None:
    stopping = EarlyStopping(values(np.arange(64) >= 5), lambda look: False)
    for size in (20, 4, 4, 4, 4, 28):
        assert not stopping(values(np.zeros(size, bool)))
    # After 20, which is past an eighth and a quarter, and after 32; all 64 are no early look.
    assert [look.seen for look in stopping.looks] == [20 / 64, 32 / 64]
    assert [look.drop for look in stopping.looks] == pytest.approx([100 * 15 / 20, 100 * 27 / 32])  # on the same images
    assert stopping.looks[0].most_accuracy > stopping.looks[1].most_accuracy
