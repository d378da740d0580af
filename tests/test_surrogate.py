"""What plans lose as a mean and an uncertainty, and what scored plans teach about it."""

import dataclasses

import numpy as np
import pytest

from plywise.env.surrogate import FACTORS, LEAST_COUNTED, Surrogate
from plywise.env.synthetic import synthetic_table
from plywise.env.uncertainty import COUNTING, LAYER, NETWORK

LAYERS, PLANS = 12, 400


@pytest.fixture(scope="module")
def table():
    drawn = synthetic_table(np.random.default_rng(1), LAYERS)
    return dataclasses.replace(drawn, drop=np.minimum(drawn.drop, 0.5))


@pytest.fixture(scope="module")
def plans(table):
    generator = np.random.default_rng(2)
    return np.array([[generator.choice(np.flatnonzero(legal)) for legal in table.legal] for _ in range(PLANS)])


def drops_of(table, plans):
    return table.drop[np.arange(LAYERS), plans].astype(float)


def truth(table, generator):
    """Draws what the estimates of one network are off by."""
    return 1 + NETWORK * generator.normal() + LAYER * generator.normal(size=LAYERS)


def seen(drop, generator):
    return drop + COUNTING * np.sqrt(np.maximum(drop, LEAST_COUNTED)) * generator.normal(size=np.shape(drop))


def test_without_outcomes_the_estimates_stand(table, plans):
    surrogate = Surrogate(table)
    assert (surrogate.table.drop == table.drop).all()
    assert surrogate.estimate(plans)[1] == pytest.approx(drops_of(table, plans).sum(1))


def test_outcomes_teach_each_layer_its_factor(table, plans):
    generator = np.random.default_rng(0)
    factors = np.linspace(0.5, 2.0, LAYERS)
    surrogate = Surrogate(table)
    before = surrogate.estimate(plans)[2]
    for plan in plans:
        surrogate.observe(plan, seen(drops_of(table, plan) @ factors, generator))
    found = (surrogate.table.drop / np.maximum(table.drop, 1e-9)).max(1)
    assert np.corrcoef(found, factors)[0, 1] > 0.8
    assert surrogate.estimate(plans)[1] == pytest.approx(drops_of(table, plans) @ factors, rel=0.2)
    assert (surrogate.estimate(plans)[2] < before).all()


def test_nine_of_ten_outcomes_lie_within_nine_tenths(table, plans):
    generator = np.random.default_rng(0)
    inside = []
    for _ in range(40):
        factors, surrogate = truth(table, generator), Surrogate(table)
        for plan in plans[:30]:
            _, (drop,), (spread,) = surrogate.estimate(plan[None])
            outcome = seen(drops_of(table, plan) @ factors, generator)
            inside.append(abs(outcome - drop) < 1.645 * spread)
            surrogate.observe(plan, outcome)
    assert 0.85 < np.mean(inside) < 0.95


def test_layers_stay_possible_and_are_never_free(table, plans):
    surrogate = Surrogate(table)
    for plan in plans[:50]:
        surrogate.observe(plan, -50.0)
    assert (surrogate.table.drop >= table.drop * FACTORS[0] * 0.9999).all()
    for plan in plans[:50]:
        surrogate.observe(plan, 500.0)
    assert (surrogate.table.drop <= table.drop * FACTORS[1] * 1.0001).all()
    assert (surrogate.estimate(plans)[1] <= table.accuracy - table.chance).all()
