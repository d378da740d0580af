"""The latency of a whole network from those of its layers, calibrated on complete graphs."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from plywise.compressors.activation_quantization import ActivationQuantization
from plywise.compressors.errors import ModelError
from plywise.compressors.low_rank import LowRank
from plywise.env.latency import Chain, Latencies, LatencyTable, chain_key
from plywise.env.mould import Mould
from plywise.env.network import Network
from plywise.env.operation import operations
from plywise.env.overhead import Overhead
from plywise.env.runtime import open_session, time_sessions
from plywise.env.sqlite_file import open_sqlite
from plywise.env.wiring import Wiring

TABLE = "overhead_1"
"""Name and version in one, in the file of the latencies."""

GRAPHS = 32
"""Complete graphs that are timed: the original, all integers, and mixes of both with low rank."""

ROUNDS = 20
"""Times that each of them runs, in turns."""

RANK = LowRank(ratio=0.4)


class NetworkLatency:
    """Latencies of one network on one device, from those of its layers.

    Attributes:
        overhead: what is found out on complete graphs, read from the file of the latencies where it is known; none
            where latencies are not measured here.
    """

    def __init__(self, network: Network, latency: Latencies) -> None:
        self.network = network
        self.latency = latency
        self.wiring = Wiring.of(network)
        self.overhead = self._kept(latency) if isinstance(latency, LatencyTable) else self._none()

    def in_place(self, row: int, chain: Chain, alone: float) -> float:
        """Returns what a chain takes in the place of a layer, milliseconds, where its neighbours compute as it does.

        Args:
            row: place of the layer.
            chain: what runs there.
            alone: its milliseconds alone.
        """
        return alone * float(self.overhead.factors[row, _form(chain)])

    def milliseconds(self, plans: Sequence[Mapping[str, Chain]]) -> NDArray[np.float64]:
        """Returns the latencies of whole plans, `(n,)` milliseconds, borders between floats and integers included.

        Args:
            plans: the chain of each layer, by name.
        """
        return self.overhead.milliseconds(*self._parts(plans))

    def _parts(self, plans: Sequence[Mapping[str, Chain]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns what `Overhead` reads: milliseconds of layers alone, and numbers that change their form."""
        names = [layer.name for layer in self.network.layers]
        found = self.latency.milliseconds([plan[name] for plan in plans for name in names], progress=False)
        alone = np.zeros((len(plans), len(names), 2))
        crossed = np.zeros((len(plans), len(names)))
        for index, plan in enumerate(plans):
            for row, name in enumerate(names):
                alone[index, row, _form(plan[name])] = found[index * len(names) + row]
                crossed[index, row] = self.wiring.crossed(name, plan)
        return alone, crossed

    def _kept(self, latency: LatencyTable) -> Overhead:
        key = self._digest()
        with open_sqlite(latency.path) as connection:
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {TABLE} (device TEXT, network TEXT, value TEXT, "
                "PRIMARY KEY (device, network))"
            )
            row = connection.execute(
                f"SELECT value FROM {TABLE} WHERE device = ? AND network = ?", (latency.device.fingerprint, key)
            ).fetchone()
        if row is not None:
            return Overhead.restore(json.loads(row[0]))
        overhead = self._calibrated(latency)
        with open_sqlite(latency.path) as connection:
            connection.execute(
                f"INSERT OR REPLACE INTO {TABLE} VALUES (?, ?, ?)",
                (latency.device.fingerprint, key, json.dumps(overhead.settings())),
            )
        return overhead

    def _calibrated(self, latency: LatencyTable) -> Overhead:
        try:
            graphs = list(self._graphs(latency.device.threads))
        except ModelError as error:
            warnings.warn(f"{self.network.name}: latencies are sums over layers, for {error}", stacklevel=2)
            return self._none()
        shape = (1, *self.network.example.shape[1:])
        whole = [each.median_ms for each in time_sessions([session for _, session in graphs], shape, ROUNDS)]
        return Overhead.fitted(*self._parts([plan for plan, _ in graphs]), np.array(whole))

    def _graphs(self, threads: int) -> Iterator[tuple[dict[str, Chain], onnxruntime.InferenceSession]]:
        mould = Mould(self.network)
        for plan in mixes(self.network):
            yield plan, open_session(mould.filled(plan), threads)

    def _none(self) -> Overhead:
        return Overhead.none(len(self.network.layers))

    def _digest(self) -> str:
        """Returns a hash of all that decides about time: shapes and wires, not weights."""
        layers = [(name, chain_key(chain)) for name, chain in self.network.operations.items()]
        content = json.dumps([repr(self.network.model), layers, asdict(self.wiring)["makers"]])
        return hashlib.sha256(content.encode()).hexdigest()[:24]


def mixes(network: Network) -> Iterator[dict[str, Chain]]:
    """Yields the plans of the complete graphs: as it is, all integers, then shares of integers and of low rank."""
    forms = {layer.name: _forms(network, layer.name) for layer in network.layers}
    generator = np.random.default_rng(0)
    shares = [(0.0, 0.0), (1.0, 0.0), *generator.random((GRAPHS - 2, 2))]
    for integer, thin in shares:
        yield {
            name: form[int(generator.random() < thin / 2), int(generator.random() < integer)]
            for name, form in forms.items()
        }


def _forms(network: Network, name: str) -> dict[tuple[int, int], Chain]:
    """Returns what a layer may run as, by whether it is thin and whether it computes on integers."""
    module, original = network.modules[name], network.operations[name]
    thin = original
    if RANK.unsupported(module) is None:
        thin = operations(RANK.outline(module), original[0].input_shape)
    plain = ActivationQuantization().unsupported(module) is not None
    return {
        (row, column): chain
        if column == 0 or plain
        else tuple(replace(each, integer=True, bias=True) for each in chain)
        for row, chain in enumerate((original, thin))
        for column in range(2)
    }


def _form(chain: Chain) -> int:
    return int(chain[-1].integer)
