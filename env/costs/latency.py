"""Latencies of layers, measured once in the deployment runtime and kept."""

import dataclasses
import json
import sqlite3
import statistics
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from plywise.compressors.errors import ModelError
from plywise.env.costs.device import Device
from plywise.env.execution.progress import tracked, untracked
from plywise.env.network.operation import Operation
from plywise.env.runtime.operation_graph import operation_graph
from plywise.env.runtime.runtime import loaded_run
from plywise.env.runtime.target_program import NOISY, block_times, relative_times, variation
from plywise.env.storage.cache import cache_folder, tell_damaged
from plywise.env.storage.sqlite_file import made_anew, open_sqlite, row_checksum
from plywise.env.storage.timing_lock import timing

Chain = tuple[Operation, ...]

TABLE = "latency_4"
"""Name and version in one: other versions of Plywise keep tables of their own in the same file."""

REFERENCE: Chain = (Operation("conv2d", 16, 16, (16, 16, 16), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),)
"""Runs interleaved with every other chain, for a machine that others use changes its speed by the second."""

ROUGH = 0.1
"""Share of the latencies that may vary much before the machine is said to be busy."""
SMALLEST_MS = 1e-4


class RoughLatencyWarning(UserWarning):
    """Says that a machine is so busy that latencies vary much from one moment to the next."""


class Latencies(Protocol):
    """Where the latencies of chains of operations come from."""

    device: Device

    def milliseconds(self, chains: Sequence[Chain], progress: bool = True) -> NDArray[np.float64]:
        """Returns the latency of each chain, `(n,)` milliseconds; nan where it cannot run."""

    def why_refused(self, chain: Chain) -> str:
        """Returns the device's reason for not running a chain whose latency is nan."""

    def source_of(self, chains: Sequence[Chain]) -> str:
        """Returns in words how the latencies of chains are known."""


class LatencyTable:
    """Milliseconds of chains of operations on one device, of one run on its batch.

    Each chain is timed alone, as an ONNX graph of its own; the cost of an empty graph is taken off, so that the
    prices of a network's layers add up. Several processes may share one file.

    Attributes:
        reasons: why the runtime refuses a chain, for every chain that came back as nan.
        variations: by how much the milliseconds of each known chain varied while it was timed, as a share of them.
    """

    def __init__(self, path: Path | None = None, device: Device | None = None) -> None:
        """Opens or creates the table.

        Args:
            path: SQLite file; the cache folder's `latency.sqlite` where None.
            device: this machine where None.

        Raises:
            FileFormatError: where the file is locked, not writable or no SQLite database.
        """
        self.path = path if path is not None else cache_folder() / "latency.sqlite"
        self.device = device if device is not None else Device.here()
        self.reasons: dict[Chain, str] = {}
        self.variations: dict[Chain, float] = {}
        made_anew(self.path, self._begin)

    def _begin(self) -> None:
        with open_sqlite(self.path) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and TABLE not in tables:
                warnings.warn(f"{self.path} is of another version; latencies will be measured again", stacklevel=4)
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {TABLE} (device TEXT, chain TEXT, milliseconds REAL, variation REAL, "
                "reason TEXT, checksum TEXT, PRIMARY KEY (device, chain))"
            )

    def milliseconds(self, chains: Sequence[Chain], progress: bool = True) -> NDArray[np.float64]:
        """Returns the latency of each chain, `(n,)` milliseconds; nan where the runtime refuses it.

        What the file does not hold yet is measured and kept at once, so a kill loses nothing. Warns where the machine
        is so busy that figures are rough.

        Args:
            chains: any number, repeats allowed.
            progress: whether to show a bar with the time left where measuring takes over 2 seconds.
        """
        known = made_anew(self.path, lambda: self._found(chains, progress))
        empty = known[()] or 0.0
        return np.array([net_milliseconds(chain, known[chain], empty) for chain in chains])

    def _found(self, chains: Sequence[Chain], progress: bool) -> dict[Chain, float | None]:
        """Returns the milliseconds of chains, of the reference and of an empty graph; None where they cannot run."""
        wanted = {chain: chain_key(chain) for chain in (REFERENCE, (), *chains)}
        with open_sqlite(self.path) as connection:
            known = self._known(connection, wanted)
            missing, rough = [chain for chain in wanted if chain not in known], 0
        with timing() if missing else nullcontext(), open_sqlite(self.path) as connection:
            known |= self._known(connection, {chain: wanted[chain] for chain in missing})  # others may have timed them
            missing = [chain for chain in missing if chain not in known]
            for chain in (tracked if progress else untracked)(missing, "measuring latencies", len(missing)):
                known[chain], varied = self._measured(chain, known.get(REFERENCE))
                rough += varied > NOISY
                row = (self.device.fingerprint, wanted[chain], known[chain], varied, self.reasons.get(chain))
                connection.execute(
                    f"INSERT OR IGNORE INTO {TABLE} VALUES (?, ?, ?, ?, ?, ?)", (*row, row_checksum(*row))
                )
                # Where another process was first, its figure counts: all others are relative to the reference's.
                known |= self._known(connection, {chain: wanted[chain]})
        what = f"{rough} of {len(missing)} latencies vary"
        tell_rough(rough, len(missing), what, f" and delete {self.path}")
        return known

    def why_refused(self, chain: Chain) -> str:
        """Returns the runtime's reason."""
        return self.reasons[chain]

    def source_of(self, chains: Sequence[Chain]) -> str:
        """Returns in words how the latencies of chains are known."""
        return f"{self.device.latency_source}: on {self.device.name}"

    def _known(self, connection: sqlite3.Connection, wanted: dict[Chain, str]) -> dict[Chain, float | None]:
        query = f"SELECT milliseconds, variation, reason, checksum FROM {TABLE} WHERE device = ? AND chain = ?"
        known: dict[Chain, float | None] = {}
        for chain, key in wanted.items():
            row = connection.execute(query, (self.device.fingerprint, key)).fetchone()
            if row is None:
                continue
            *figures, checksum = row
            if checksum != row_checksum(self.device.fingerprint, key, *figures):
                tell_damaged(f"a latency in {self.path}")
                delete = f"DELETE FROM {TABLE} WHERE device = ? AND chain = ?"
                connection.execute(delete, (self.device.fingerprint, key))
                continue
            known[chain], self.variations[chain], reason = figures
            if reason is not None:
                self.reasons[chain] = reason
        return known

    def _measured(self, chain: Chain, reference: float | None) -> tuple[float | None, float]:
        try:
            return _time_chain(chain, self.device, reference)
        except ModelError as error:
            self.reasons[chain] = str(error)
            return None, 0.0


def tell_rough(rough: int, count: int, what: str, fix: str = "") -> None:
    """Warns the caller's caller where too many of some latencies are rough.

    Args:
        rough, count: how many vary by over `NOISY`, and of how many.
        what: what varies, with the verb.
        fix: what else to do for better ones, besides giving the machine less to do.
    """
    if rough > ROUGH * count:
        warnings.warn(
            f"{what} by over {100 * NOISY:.0f} % from one moment to the next; give the machine less to do{fix} for "
            "better ones",
            RoughLatencyWarning,
            stacklevel=3,
        )


def net_milliseconds(chain: Chain, cost: float | None, empty: float) -> float:
    """Returns what a chain takes alongside the cost of running any graph; nan where the runtime refuses it."""
    if cost is None:
        return float("nan")
    return max(cost - empty, SMALLEST_MS) if chain else 0.0


def chain_key(chain: Chain) -> str:
    """Returns a chain as JSON, always written alike."""
    return json.dumps([_written(operation) for operation in chain], separators=(",", ":"))


def _written(operation: Operation) -> dict[str, Any]:
    fields = dataclasses.asdict(operation)
    if not operation.alongside:  # what stands alone is written as it was before others could stand alongside it
        del fields["alongside"]
    return fields


def _time_chain(chain: Chain, device: Device, reference: float | None) -> tuple[float, float]:
    """Returns the milliseconds of one run, and by how much they vary, as a share of them.

    Args:
        chain: what to run.
        device: says how, and on how many inputs.
        reference: milliseconds of `REFERENCE`, with which it then runs interleaved.
    """
    run = _runs(chain, device)
    if reference is None:
        unit, blocks = 1e3, block_times(run, device.execution)
    else:
        unit, blocks = reference, relative_times(run, _runs(REFERENCE, device), device.execution)
    return unit * statistics.median(blocks), variation(blocks)


@lru_cache(maxsize=2)
def _runs(chain: Chain, device: Device) -> Callable[[], object]:
    """Returns what runs a chain once; the reference stays loaded between two others."""
    shape = chain[0].input_shape if chain else (1,)
    return loaded_run(operation_graph(chain), (device.batch, *shape), device.execution)
