"""What plans lose as a mean and an uncertainty, and what scored plans teach about it."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import spearmanr

from plywise.env.score.plan_drop import plan_drop
from plywise.env.score.surrogate import FACTORS, PAIR, PLAN, WITNESSES, Surrogate
from plywise.env.score.uncertainty import LAYER, NETWORK, counting_variance
from plywise.env.walk.synthetic import synthetic_table
from plywise.experiments.studies.fidelity_study import random_plans, reliability, spread_plans

LAYERS, PLANS, SAMPLES = 12, 400, 400
NO_PAIRS = np.zeros((LAYERS, LAYERS))


@pytest.fixture(scope="module")
def table():
    drawn = synthetic_table(np.random.default_rng(1), LAYERS)
    return dataclasses.replace(drawn, drop=np.minimum(drawn.drop, 0.5), samples=SAMPLES)


@pytest.fixture(scope="module")
def plans(table):
    generator = np.random.default_rng(2)
    return np.array([[generator.choice(np.flatnonzero(legal)) for legal in table.legal] for _ in range(PLANS)])


def drops_of(table, plans):
    return table.drop[np.arange(LAYERS), plans].astype(float)


def truth(generator):
    """Draws what the estimates of one network are off by: factors of layers, and how pairs of layers interact."""
    factors = 1 + NETWORK * generator.normal() + LAYER * generator.normal(size=LAYERS)
    return factors, PAIR * generator.normal(size=(LAYERS, LAYERS))


def lost(table, plans, factors, pairs=NO_PAIRS):
    drops = drops_of(table, plans)
    total = drops @ factors + ((np.sqrt(drops) @ pairs) * np.sqrt(drops)).sum(-1)
    return plan_drop(total, table.accuracy - table.chance)


def seen(drop, generator):
    counted = np.sqrt(counting_variance(drop, SAMPLES)) * generator.normal()
    return drop * (1 + PLAN * generator.normal()) + counted


def test_without_outcomes_the_estimates_stand(table, plans):
    surrogate = Surrogate(table)
    assert (surrogate.table.drop == table.drop).all()
    small = plans * (np.arange(LAYERS) == 3)
    assert surrogate.estimate(small)[1] == pytest.approx(drops_of(table, small).sum(1), rel=0.01)
    assert surrogate.estimate(plans)[1] == pytest.approx(lost(table, plans, np.ones(LAYERS)))


def test_outcomes_teach_each_layer_its_factor(table, plans):
    generator = np.random.default_rng(0)
    factors = np.linspace(0.5, 2.0, LAYERS)
    surrogate = Surrogate(table)
    _, before, unsure = surrogate.estimate(plans)
    for plan in plans:
        surrogate.observe(plan, seen(lost(table, plan, factors), generator))
    found = (surrogate.table.drop / np.maximum(table.drop, 1e-9)).max(1)
    assert np.corrcoef(found, factors)[0, 1] > 0.7
    assert surrogate.estimate(plans)[1] == pytest.approx(lost(table, plans, factors), rel=0.3)
    _, after, sure = surrogate.estimate(plans)
    assert (sure / after < unsure / before).mean() > 0.95


def test_outcomes_teach_which_layers_interact(table, plans, monkeypatch):
    pairs = NO_PAIRS.copy()
    pairs[2, 7] = 4.0
    wanted, found = lost(table, plans, np.ones(LAYERS), pairs), {}
    for spread in (1e-6, PAIR):
        monkeypatch.setattr("plywise.env.score.surrogate.PAIR", spread)
        surrogate = Surrogate(table)
        for plan, drop in zip(plans[:200], wanted, strict=False):
            surrogate.observe(plan, drop)
        found[spread] = np.abs(surrogate.estimate(plans[200:])[1] - wanted[200:]).mean()
    assert found[PAIR] < 0.7 * found[1e-6]


def test_nine_of_ten_outcomes_lie_within_nine_tenths(table, plans):
    generator = np.random.default_rng(0)
    inside = []
    for _ in range(40):
        errors, surrogate = truth(generator), Surrogate(table)
        for plan in plans[:30]:
            _, (drop,), (spread,) = surrogate.estimate(plan[None])
            outcome = seen(lost(table, plan, *errors), generator)
            inside.append(abs(outcome - drop) < 1.645 * spread)
            surrogate.observe(plan, outcome)
    assert 0.85 < np.mean(inside) < 0.95


@pytest.mark.parametrize("times", [0.5, 2.0])
def test_how_large_the_errors_of_a_network_are_is_learned(table, plans, times):
    spreads = []
    for size in (1.0, times):
        generator = np.random.default_rng(0)
        for _ in range(10):
            factors, pairs = truth(generator)
            surrogate = Surrogate(table)
            for plan in plans[:50]:
                real = lost(table, plan, 1 + size * (factors - 1), size * pairs)
                surrogate.observe(plan, real + size * (seen(real, generator) - real))
            spreads.append(surrogate.estimate(plans[50:])[2])
    usual, found = np.reshape(spreads, (2, -1))
    wanted = np.sqrt((WITNESSES + 50 * times**2) / (WITNESSES + 50))
    assert np.median(found / usual) == pytest.approx(wanted, rel=0.15)


def test_spread_plans_lose_from_least_to_most_and_differ(table):
    some, plain = spread_plans(table, 20), random_plans(table, 20)
    drops, usual = Surrogate(table).estimate(some)[1], Surrogate(table).estimate(plain)[1]
    assert len(np.unique(some, axis=0)) == 20
    assert (np.diff(drops) > 0).all()
    assert np.diff(drops).max() < np.diff(np.sort(usual)).max()


def test_no_plan_loses_more_than_the_room_above_guessing(table, plans):
    hopeless = dataclasses.replace(table, drop=table.drop * 1000)
    drops = Surrogate(hopeless).estimate(plans)[1]
    assert (drops < table.accuracy - table.chance).all()
    assert drops.max() > 0.9 * (table.accuracy - table.chance)


def test_layers_stay_possible_and_are_never_free(table, plans):
    surrogate = Surrogate(table)
    for plan in plans[:50]:
        surrogate.observe(plan, -50.0)
    assert (surrogate.table.drop >= table.drop * FACTORS[0] * 0.9999).all()
    for plan in plans[:50]:
        surrogate.observe(plan, 500.0)
    assert (surrogate.table.drop <= table.drop * FACTORS[1] * 1.0001).all()
    assert (surrogate.estimate(plans)[1] <= table.accuracy - table.chance).all()


@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_what_few_images_allow_is_foretold_from_their_halves(spread):
    generator = np.random.default_rng(0)
    right = generator.random((400, 1, 1)) * spread + 0.7 > generator.random((400, 2, 200))
    first, second = right[:, 0].astype(np.float32), right[:, 1].astype(np.float32)
    agreement = spearmanr(first.mean(1), second.mean(1)).statistic
    assert reliability(first) == pytest.approx(agreement, abs=0.1)
