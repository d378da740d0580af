import numpy as np
import pytest
from tiny_networks import Concatenated, Depthwise, Flattened, Grouped, Residual, build, images
from torch import nn

from plywise.compressors.errors import ModelError
from plywise.env.costs import network_latency
from plywise.env.costs.graph_template import GraphTemplate
from plywise.env.costs.latency import Latencies, LatencyTable
from plywise.env.costs.network_latency import NetworkLatency, Overhead
from plywise.env.costs.trial_graphs import random_plans, shapes_of
from plywise.env.network.network import Network
from plywise.env.runtime import runtime
from plywise.env.runtime.runtime import open_session, random_inputs, run_session


def network(kind: type[nn.Module]) -> Network:
    return Network.of(build(kind), images(4))


def test_the_nearest_layer_is_the_last_one_that_reaches_it() -> None:
    nearest = GraphTemplate(network(Residual)).nearest
    assert nearest["stem"] is None
    assert nearest["a2"] == "a1"
    assert nearest["b1"] == "a2"
    assert nearest["head"] == "b2"


@pytest.mark.parametrize("kind", [Residual, Depthwise, Concatenated, Flattened, Grouped])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_mould_runs_with_any_layers(kind: type[nn.Module], batch: int) -> None:
    found = network(kind)
    template = GraphTemplate(found, batch)
    for plan in random_plans(found, 8):
        session = open_session(template.filled(*shapes_of(found, plan)))
        assert run_session(session, random_inputs(session, (batch, 3, 8, 8))).shape == (batch, 5)


def test_random_plans_cut_and_round() -> None:
    found = network(Residual)
    shapes = [shapes_of(found, plan)[0] for plan in random_plans(found, 20)]
    operations = [operation for chains in shapes for chain in chains.values() for operation in chain]
    assert {operation.integer for operation in operations} == {True, False}
    assert min(chains["a1"][-1].out_channels for chains in shapes) < found.operations["a1"][0].out_channels


class Fake(LatencyTable):
    """Layers take a millisecond on floats and half of one on integers."""

    def milliseconds(self, chains, progress=True):
        return np.array([0.5 if chain[-1].integer else 1.0 for chain in chains])


def test_calibration_finds_what_made_the_times(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, table = network(Residual), Fake(tmp_path / "latency.sqlite")
    truth = Overhead(0.8, 1.2, 0.05, 0.0, 0.3, 1.0)

    def share(self: NetworkLatency, plan, precision=None, loads=1) -> tuple[float, float]:
        parts = self._parts([self.network.operations, plan[0]])
        whole = parts[:, [0, 1, 2, 4]] @ np.array([truth.floats, truth.integers, truth.border, truth.rest])
        return float(whole[1] / whole[0]), 0.0

    monkeypatch.setattr(NetworkLatency, "_share", share)
    monkeypatch.setattr(network_latency, "time_model", lambda *_: 1.0)
    whole = NetworkLatency(found, table)
    plans = [shapes_of(found, plan) for plan in random_plans(found, 10, seed=5)]
    expected = [share(whole, plan)[0] for plan in plans]
    np.testing.assert_allclose(whole.predicted([chains for chains, _ in plans]), expected, rtol=1e-3)
    assert whole.measured(*plans[0]) == pytest.approx(expected[0])
    chains = plans[0][0]
    each = whole.by_layer(chains)
    assert each.shape == (len(found.layers),)
    assert each.sum() + whole.overhead.rest == pytest.approx(whole.predicted([chains])[0])
    monkeypatch.setattr(NetworkLatency, "_calibrated", None)
    assert NetworkLatency(found, table).overhead == whole.overhead


def test_a_share_is_the_median_over_graphs_loaded_anew(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, shares, loaded = network(Residual), iter([[1.2] * 5, [0.9] * 5, [1.0] * 5]), []
    monkeypatch.setattr(runtime, "loaded_run", lambda *_: loaded.append(1) or (lambda: None))
    monkeypatch.setattr(runtime, "relative_times", lambda *_: next(shares))
    whole = NetworkLatency(found, Fake(tmp_path / "latency.sqlite"))
    assert whole._share((found.operations, {}), (0.1, 0.1), 3) == (1.0, 0.0)
    assert len(loaded) == 6


def test_a_runtime_that_fails_once_is_tried_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, table = network(Residual), Fake(tmp_path / "latency.sqlite")
    monkeypatch.setattr(network_latency, "time_model", failing)
    with pytest.warns(UserWarning, match="sums over layers, for out of memory"):
        assert NetworkLatency(found, table).overhead == Overhead()
    monkeypatch.setattr(network_latency, "time_model", lambda *_: 1.0)
    monkeypatch.setattr(network_latency, "relative_time", lambda *_: (0.9, 0.0))
    assert NetworkLatency(found, table).overhead.original == 1.0


def test_what_cannot_be_timed_or_varies_much_is_said(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = network(Residual)
    monkeypatch.setattr(network_latency, "time_model", lambda *_: 1.0)
    monkeypatch.setattr(network_latency, "relative_time", lambda *_: (0.9, 0.5))
    whole = NetworkLatency(found, Fake(tmp_path / "latency.sqlite"))
    with pytest.warns(UserWarning, match="latency of 24 of 24 whole graphs varies by over 20 %"):
        assert whole.overhead.original == 1.0
    monkeypatch.setattr(network_latency, "relative_time", failing)
    with pytest.warns(UserWarning, match="whole cannot be timed: out of memory"):
        assert whole.measured(found.operations) == pytest.approx(whole.predicted([found.operations])[0])


def test_plans_of_one_graph_take_one_time(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the noise: another measurement of one graph must not tell two plans apart, in this run or another."""
    found, noise = network(Residual), iter(np.linspace(0.9, 1.1, 200))
    monkeypatch.setattr(network_latency, "time_model", lambda *_: 1.0)
    monkeypatch.setattr(network_latency, "relative_time", lambda *_: (next(noise), 0.0))
    first, again = (NetworkLatency(found, Fake(tmp_path / "latency.sqlite")) for _ in range(2))
    (one, other), norms = (shapes_of(found, plan)[0] for plan in random_plans(found, 2, seed=5)), {}
    taken = first.measured(one, norms)
    assert first.measured(dict(one), norms) == again.measured(one, norms) == taken
    assert first.measured(other, norms) != taken
    assert first.measured(one, {"stem": nn.Conv2d(3, 4, 3)}) != taken


def test_calibration_is_not_that_of_another_forward(tmp_path) -> None:
    table, digests = Fake(tmp_path / "latency.sqlite"), set()
    for squared in (False, True):
        digests.add(NetworkLatency(Network.of(build(Forward, squared=squared), images(4)), table)._digest)
    assert len(digests) == 2


class Forward(nn.Module):
    """Networks of the same modules whose forward differs."""

    def __init__(self, squared):
        super().__init__()
        self.squared = squared
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, inputs):
        out = self.conv(inputs).mean((2, 3))
        return self.head(out.square() if self.squared else out)


def failing(*_):
    raise ModelError("out of memory")


def test_what_is_not_measured_here_adds_up(declared: Latencies) -> None:
    found = network(Residual)
    whole = NetworkLatency(found, declared)
    expected = declared.milliseconds(list(found.operations.values())).sum()
    assert whole.overhead == Overhead()
    assert whole.measured(found.operations) == pytest.approx(expected)


@pytest.fixture
def declared() -> Latencies:
    from plywise.env.costs.devices import open_device

    return open_device("raspberry-pi-4")
