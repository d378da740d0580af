import numpy as np
import pytest
from tiny_networks import Depthwise, Residual, build, images

from plywise.env.latency import LatencyTable
from plywise.env.mould import Mould
from plywise.env.network import Network
from plywise.env.network_latency import NetworkLatency, mixes
from plywise.env.overhead import Overhead
from plywise.env.runtime import open_session, random_inputs, run_session
from plywise.env.wiring import Wiring


def network(kind):
    return Network.of(build(kind), images(4))


def test_wires_lead_through_sums_to_every_maker():
    makers = Wiring.of(network(Residual)).makers
    assert makers["stem"] == ()
    assert makers["a2"] == ("a1",)
    assert set(makers["b1"]) == {"a2", "stem"}
    assert set(makers["head"]) == {"b2", "a2", "stem"}


def test_numbers_cross_where_forms_differ():
    residual = network(Residual)
    wiring = Wiring.of(residual)
    plain, integers, *_ = mixes(residual)
    assert wiring.crossed("a2", plain) == wiring.crossed("a2", integers) == 0
    assert wiring.crossed("a2", plain | {"a1": integers["a1"]}) == 8 * 8 * 8
    assert wiring.crossed("b1", plain | {"a2": integers["a2"]}) == 8 * 8 * 8 / 2


@pytest.mark.parametrize("kind", [Residual, Depthwise])
def test_a_mould_runs_with_any_layers(kind):
    found = network(kind)
    mould = Mould(found)
    for plan, _ in zip(mixes(found), range(4), strict=False):
        session = open_session(mould.filled(plan))
        assert run_session(session, random_inputs(session, (1, 3, 8, 8))).shape == (1, 5)


def test_overhead_finds_what_made_the_times():
    generator = np.random.default_rng(0)
    form = generator.integers(2, size=(60, 5))
    time = generator.uniform(0.1, 1.0, (60, 5))
    alone = np.stack([time * (form == 0), time * (form == 1)], 2)
    crossed = generator.integers(2, size=(60, 5)) * 1e4
    factors, borders = generator.uniform(0.8, 1.2, (5, 2)), generator.uniform(0.5e-5, 1.5e-5, 5)
    truth = Overhead(factors, borders, 0.3)
    fitted = Overhead.fitted(alone, crossed, truth.milliseconds(alone, crossed))
    fresh = alone[:, ::-1], crossed[:, ::-1]
    np.testing.assert_allclose(fitted.milliseconds(*fresh), truth.milliseconds(*fresh), rtol=0.05)
    kept = Overhead.restore(fitted.settings())
    np.testing.assert_array_equal(kept.milliseconds(*fresh), fitted.milliseconds(*fresh))


def test_a_second_run_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("plywise.env.latency._time_chain", lambda chain, threads: 0.1 * len(chain))
    monkeypatch.setattr("plywise.env.network_latency.GRAPHS", 4)
    found, table = network(Residual), LatencyTable(tmp_path / "latency.sqlite")
    first = NetworkLatency(found, table)
    monkeypatch.setattr("plywise.env.network_latency.Mould", None)
    second = NetworkLatency(found, table)
    np.testing.assert_array_equal(second.overhead.factors, first.overhead.factors)
    assert second.milliseconds([found.operations]) == first.milliseconds([found.operations])
    assert first.milliseconds([found.operations])[0] > 0
