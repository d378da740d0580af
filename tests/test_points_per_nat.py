"""What a nat costs, learned from trials whose drops are counts."""

import numpy as np
import pytest

from plywise.env.score.plan_drop import plan_drop
from plywise.env.score.points_per_nat import USUAL, points_per_nat

ROOM = 85.0
NATS = {"little": np.geomspace(1e-3, 0.1, 10), "usual": np.geomspace(1e-4, 1.0, 10), "much": np.geomspace(1e-3, 10, 10)}


def counted(lost, won, samples, generator):
    """Drops in points, of samples lost and won with these percentages."""
    right = generator.binomial(samples, np.minimum(lost + won, 100.0) / 100.0)
    return 100.0 * (right - generator.binomial(samples, won / 100.0, len(lost))) / samples


@pytest.mark.parametrize("samples", [400, 2000])
@pytest.mark.parametrize("nats", NATS, ids=str)
@pytest.mark.parametrize("truth", [10.0, 60.0])
def test_neither_noise_nor_large_drops_bias_it(truth, nats, samples):
    """Choosing trials by 0 <= drop <= 15, as was done once, makes 25 of 10 with "little" (400 samples)."""
    generator, found = np.random.default_rng(0), []
    for _ in range(300):
        own = np.exp(generator.normal(0.0, 0.4, 10) - 0.08)  # of mean 1
        lost = plan_drop(truth * own * NATS[nats], ROOM)
        found.append(points_per_nat(NATS[nats], counted(lost, 1.0, samples, generator), ROOM, samples))
    near = 0.25 if nats == "little" else 0.1
    assert np.mean(found) == pytest.approx(truth, rel=near)
    assert np.median(found) == pytest.approx(truth, rel=near)


def test_trials_that_win_count_as_much_as_those_that_lose():
    nats = np.full(2, 0.05)
    even = points_per_nat(nats, np.array([0.5, 0.5]), ROOM, 400)
    assert points_per_nat(nats, np.array([-0.5, 1.5]), ROOM, 400) == pytest.approx(even)
    assert points_per_nat(nats, np.array([-0.5, 0.5]), ROOM, 400) < even


def test_without_a_telling_trial_it_is_the_usual_one():
    assert points_per_nat(np.zeros(3), np.array([0.0, -0.5, 0.5]), ROOM, 400) == pytest.approx(USUAL)
    assert points_per_nat(np.ones(1), np.zeros(1), 0.0, 400) == pytest.approx(USUAL, rel=0.1)


@pytest.mark.parametrize("drop", [-20.0, 85.0])
def test_trials_that_contradict_all_expectations_leave_it_a_number(drop):
    found = points_per_nat(np.geomspace(1e-4, 10.0, 10), np.full(10, drop), ROOM, 400)
    assert np.isfinite(found)
    assert found > 0.0
