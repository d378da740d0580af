"""How far drops are off: what counting adds, and what training is told."""

import dataclasses

import numpy as np
import pytest

from plywise.env.prices.price_stack import PriceStack
from plywise.env.score.demand import Demand
from plywise.env.score.plan_drop import plan_drop
from plywise.env.score.score import Demands
from plywise.env.score.surrogate import Surrogate
from plywise.env.score.uncertainty import LEAST_CHANGED, counting_variance, spread_of
from plywise.env.walk.randomisation import Randomisation
from plywise.env.walk.synthetic import synthetic_table
from plywise.env.walk.walk import Factors, Walks


@pytest.mark.parametrize("samples", [200, 2000])
@pytest.mark.parametrize(("lost", "won"), [(0.25, 0.25), (1.0, 0.0), (6.0, 0.0)])
def test_counted_drops_vary_as_assumed(lost, won, samples):
    generator = np.random.default_rng(0)
    drops = 100.0 * (generator.binomial(samples, lost / 100, 20_000) - generator.binomial(samples, won / 100, 20_000))
    assert (lost + won) >= LEAST_CHANGED
    variance = counting_variance(np.array(lost - won), samples)
    assert np.var(drops / samples) == pytest.approx(variance * (lost + won) / max(lost - won, LEAST_CHANGED), rel=0.1)


def test_more_samples_leave_less_doubt():
    drops = np.array([0.0, 0.5, 1.0])
    few, many, endless = (spread_of(drops, samples) for samples in (400, 2000, 1e12))
    assert (np.diff([endless, many, few], axis=0) > 0).all()
    assert few[2] ** 2 - endless[2] ** 2 == pytest.approx(5 * (many[2] ** 2 - endless[2] ** 2))


def test_a_surrogate_of_many_samples_is_surer_and_learns_more():
    table = synthetic_table(np.random.default_rng(0), 6)
    plans = np.full((1, 6), 4)
    spreads, found = [], []
    for samples in (100, 10_000):
        surrogate = Surrogate(dataclasses.replace(table, samples=samples))
        before = surrogate.estimate(plans)[1][0]
        spreads.append(surrogate.estimate(plans)[2][0])
        surrogate.observe(plans[0], 2.0 * before)
        found.append(surrogate.estimate(plans)[1][0] / before)
    assert spreads[1] < spreads[0]
    assert found[1] > found[0] > 1.0


def test_the_errors_of_training_have_a_mean_of_one():
    """Shaping and surrogate take estimates for the mean of what is lost."""
    table = synthetic_table(np.random.default_rng(0), 6)
    walks = Walks(PriceStack([table]), 4000)
    rows = np.arange(4000)
    Randomisation(noise=1.0).place(walks, rows, np.zeros(4000, int), np.random.default_rng(0))
    assert walks.state.truth_factor.mean() == pytest.approx(1.0, abs=0.02)


def test_training_counts_the_samples_of_each_network():
    spreads = []
    for samples in (100, 10_000):
        table = dataclasses.replace(synthetic_table(np.random.default_rng(0), 3), samples=samples)
        walks, rows = Walks(PriceStack([table]), 2000), np.arange(2000)
        counting_noise = np.random.default_rng(1).normal(size=2000)
        walks.place(rows, np.zeros(2000, int), Factors(counting_noise=counting_noise))
        walks.start(rows, Demands.of([Demand(None)] * 2000))
        for _ in range(3):
            walks.step(walks.outlook.masks.shape[1] - 1 - walks.outlook.masks[:, ::-1].argmax(1))
        drop = plan_drop(walks.state.true_drop[:1], walks.room[:1])[0]
        seen = walks.outcomes(rows)[1]
        assert seen.mean() == pytest.approx(drop, abs=0.1)
        assert seen.std() == pytest.approx(np.sqrt(100.0 * max(drop, LEAST_CHANGED) / samples), rel=0.1)
        spreads.append(seen.std())
    assert spreads[0] == pytest.approx(10 * spreads[1], rel=0.01)
