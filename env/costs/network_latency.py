"""The latency of a whole network: timed where it can be, else from those of its layers, calibrated on whole graphs."""

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.optimize import nnls
from torch import nn

from plywise.compressors.errors import ModelError
from plywise.compressors.packing.trimmed_module import trimming
from plywise.env.arrays import Doubles
from plywise.env.costs.graph_template import GraphTemplate
from plywise.env.costs.latency import Chain, Latencies, LatencyTable, chain_key, tell_rough
from plywise.env.costs.trial_graphs import Shapes, random_plans, shapes_of
from plywise.env.network.network import Network
from plywise.env.runtime.runtime import Inputs, relative_time, time_model, timing_inputs
from plywise.env.runtime.target_program import NOISY
from plywise.env.storage.result_store import ResultStore
from plywise.env.storage.timing_lock import timing

GRAPHS = 24
"""Random plans whose whole graphs are timed."""

LOADS = 3
"""How often the graph of a plan that is scored is loaded anew, see `plywise.env.runtime.runtime.LOADS`."""

PRECISELY, ROUGHLY = (0.017, 0.17), (0.02, 0.1)
"""Standard error that the share of a graph's time shall have, and seconds that it may take: of each load of a plan that
is scored, and of one plan among many to calibrate on."""

ORIGINAL_WEIGHT = 10.0
"""How many other graphs the original counts for: ceilings are shares of it."""

WHOLE: Mapping[str, nn.Module] = MappingProxyType({})


@dataclass(frozen=True)
class Overhead:
    """What layers cost in a network, where the runtime merges them and must change the number format between them.

    Attributes:
        floats, integers: factors on what a layer takes alone, by what it computes on.
        border, number: milliseconds where a layer computes on other numbers than the one before it, and of each number
            that it then reads.
        rest: milliseconds of what is no layer.
        original: milliseconds of the network as it was; None where whole graphs are not timed.
    """

    floats: float = 1.0
    integers: float = 1.0
    border: float = 0.0
    number: float = 0.0
    rest: float = 0.0
    original: float | None = None

    def in_place(self, chain: Chain, alone: float) -> float:
        """Returns what a chain takes where the layer before it computes on the same numbers, milliseconds."""
        return alone * (self.integers if _on_integers(chain) else self.floats)


class NetworkLatency:
    """Latencies of one network on one device.

    Where latencies are measured on this machine, whole graphs are timed: a few once, to learn what the network costs
    alongside its layers, and then each plan that is looked at for real. Elsewhere the network costs what its layers do.
    """

    def __init__(self, network: Network, latency: Latencies) -> None:
        """Prepares; nothing is measured yet.

        Args:
            network: as it was.
            latency: of layers, on the device.
        """
        self.network = network
        self.latency = latency

    @cached_property
    def overhead(self) -> Overhead:
        """Read from the file of the latencies; what it does not hold yet is measured and kept."""
        if not isinstance(self.latency, LatencyTable) or not self.latency.device.is_here:
            return Overhead()
        store, key = self._store(self.latency), f"{self.latency.device.fingerprint}/overhead/{self._digest}"
        found = store.get(key)
        if found is not None:
            return Overhead(**found)
        try:
            overhead = self._calibrated()
        except ModelError as error:  # not kept: the runtime may have failed for once
            warnings.warn(f"{self.network.name}: latencies are sums over layers, for {error}", stacklevel=2)
            return Overhead()
        store.put(key, asdict(overhead))
        return overhead

    @property
    def nearest(self) -> Mapping[str, str | None]:
        """For each layer, by name, the one whose numbers it reads; none of them where whole graphs are not timed."""
        if self.overhead.original is None:
            return dict.fromkeys((layer.name for layer in self.network.layers), None)
        return self._template.nearest

    def predicted(self, plans: Sequence[Mapping[str, Chain]]) -> Doubles:
        """Returns the latencies of plans, `(n,)` milliseconds, from those of their layers.

        Args:
            plans: the chain of each layer, by name.
        """
        if self.overhead.original is None:
            each = [self.latency.milliseconds([plan[name] for name in self._runs], progress=False) for plan in plans]
            summed: Doubles = np.array(each) @ np.array(list(self._runs.values()))
            return summed + self.tied
        found: Doubles = self._parts(plans) @ np.array(list(asdict(self.overhead).values())[:-1])
        return found

    def by_layer(self, chains: Mapping[str, Chain]) -> Doubles:
        """Returns what each layer of a plan adds to `predicted`, changes of number format too, `(L,)` ms.

        Args:
            chains: of each layer, by name.
        """
        (parts,) = self._parts_by_layer([chains], self.nearest)
        found: Doubles = parts @ np.array(list(asdict(self.overhead).values())[:-2])
        return found

    def measured(self, chains: Mapping[str, Chain], others: Mapping[str, nn.Module] = WHOLE) -> float:
        """Returns the milliseconds of a plan: of its whole graph, interleaved with the original's, where that can run.

        Args:
            chains: of each layer, by name.
            others: modules besides layers that have lost channels, by name.
        """
        original = self.overhead.original
        if original is not None:
            try:
                return self._timed_share(chains, others) * original
            except ModelError as error:
                warnings.warn(
                    f"{self.network.name}: latencies of some plans are estimated from those of their layers, for the "
                    f"whole cannot be timed: {error}",
                    stacklevel=2,
                )
        return float(self.predicted([chains])[0])

    def _timed_share(self, chains: Mapping[str, Chain], others: Mapping[str, nn.Module]) -> float:
        """Returns the time of a plan's graph over that of the original's; each graph is timed once and kept.

        Plans that differ in what is decoded when the file is loaded have the same graph: another measurement of it
        would tell them apart by its noise.
        """
        shapes = [[name, chain_key(chain)] for name, chain in sorted(chains.items())]
        content = json.dumps([self._digest, repr(self.overhead), shapes, self._lost(others)])
        graph = hashlib.sha256(content.encode()).hexdigest()[:24]
        assert isinstance(self.latency, LatencyTable)
        store, key = self._store(self.latency), f"{self.latency.device.fingerprint}/graph/{graph}"
        found = store.get(key)
        if found is not None:
            return float(found)
        share, varied = self._share((chains, others), PRECISELY, LOADS)
        tell_rough(int(varied > NOISY), 1, f"{self.network.name}: the latency of 1 of 1 whole graphs varies")
        store.put(key, share)
        return share

    def _lost(self, others: Mapping[str, nn.Module]) -> list[Any]:
        modules = self.network.modules
        return [[name, *trimming(module, modules[name])] for name, module in sorted(others.items())]

    @staticmethod
    def _store(latency: LatencyTable) -> ResultStore:
        """Returns where figures of whole graphs are kept: in the file of the latencies, with which they go."""
        return ResultStore(latency.path)

    def _share(self, plan: Shapes, precision: tuple[float, float], loads: int = 1) -> tuple[float, float]:
        """Returns the time of a plan's graph over that of the original's, and by how much it varies, relative to it."""
        graph, execution = self._template.filled(*plan), self.latency.device.execution
        return relative_time(graph, self._original, self._inputs, execution, loads, precision)

    @cached_property
    def tied(self) -> float:
        """Milliseconds of the tied layers, where they are not part of the overhead."""
        if self.overhead.original is not None:
            return 0.0
        alone = self.latency.milliseconds(list(self.network.tied_operations.values()), progress=False)
        return float(alone @ np.array([layer.runs for layer in self.network.tied])) if len(alone) else 0.0

    @cached_property
    def _runs(self) -> dict[str, float]:
        return {layer.name: layer.runs for layer in self.network.layers}

    @cached_property
    def _inputs(self) -> Inputs:
        return timing_inputs(self.network.interface, self.latency.device.batch)

    @cached_property
    def _original(self) -> bytes:
        return self._template.filled(self.network.operations, WHOLE)

    @cached_property
    def _template(self) -> GraphTemplate:
        return GraphTemplate(self.network, self.latency.device.batch)

    @timing()
    def _calibrated(self) -> Overhead:
        original = time_model(self._original, self._inputs, self.latency.device.execution)
        graphs = [shapes_of(self.network, plan) for plan in random_plans(self.network, GRAPHS)]
        shares = self._shares(graphs)
        parts = self._parts([self.network.operations, *(chains for chains, _ in graphs)])
        weight = np.where(np.arange(len(shares)) == 0, ORIGINAL_WEIGHT**0.5, 1.0) / shares  # errors count as shares
        timed = np.isfinite(shares) & np.isfinite(parts).all(1)
        found = nnls((parts * weight[:, None])[timed], original * (shares * weight)[timed])[0]
        found *= original / (parts[0] @ found)  # plans are judged by their share of the original's
        floats, integers, border, number, rest = map(float, found)
        return Overhead(floats, integers, border, number, rest, original)

    def _shares(self, graphs: Sequence[Shapes]) -> Doubles:
        """Returns the times of graphs over the original's, `(1 + n,)`, its own first; nan where one cannot run."""
        shares, rough = [1.0], 0
        for graph in graphs:
            try:
                share, varied = self._share(graph, ROUGHLY)
            except ModelError:
                share, varied = math.nan, 0.0
            shares.append(share)
            rough += varied > NOISY
        what = f"{self.network.name}: the latency of {rough} of {len(graphs)} whole graphs varies"
        tell_rough(rough, len(graphs), what)
        return np.array(shares)

    def _parts(self, plans: Sequence[Mapping[str, Chain]]) -> Doubles:
        """Returns what an `Overhead` weighs, `(n, 5)`: two sums of layers alone, borders, numbers across them, one."""
        layers = self._parts_by_layer(plans, self._template.nearest)
        return np.column_stack([layers.sum(1), np.ones(len(plans))])

    def _parts_by_layer(self, plans: Sequence[Mapping[str, Chain]], nearest: Mapping[str, str | None]) -> Doubles:
        """Returns what each layer adds to the first four of `_parts`, `(n, L, 4)`."""
        names = list(self._runs)
        alone = self.latency.milliseconds([plan[name] for plan in plans for name in names], progress=False)
        parts = np.zeros((len(plans), len(names), 4))
        for rows, plan, times in zip(parts, plans, alone.reshape(len(plans), -1), strict=True):
            for row, name, milliseconds in zip(rows, names, times, strict=True):
                chain = plan[name]
                row[int(_on_integers(chain))] = self._runs[name] * milliseconds
                before = nearest[name]
                if chain and chain[0].integer != (before is not None and _on_integers(plan[before])):
                    row[2:] = 1.0, self._runs[name] * math.prod(chain[0].input_shape)
        return parts

    @cached_property
    def _digest(self) -> str:
        """Returns a hash of all that decides about time: shapes and wires, not weights."""
        layers = [(name, chain_key(chain)) for name, chain in self.network.operations.items()]
        content = json.dumps([repr(self.network.model), layers, self.network.graph.operators])
        return hashlib.sha256(content.encode()).hexdigest()[:24]


def _on_integers(chain: Chain) -> bool:
    return bool(chain) and chain[-1].integer
