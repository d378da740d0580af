"""Energy counters of processors, where the system lets us read them.

Source: the Linux power capping framework (Documentation/power/powercap/powercap.rst): RAPL counts the microjoules of
each processor package, AMD's too, in `energy_uj`, from 0 again after `max_energy_range_uj`. Since Linux 5.10 only root
may read it. It counts all that the package does, so a busy machine reads too much.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from plywise.compressors.errors import ConfigurationError

POWERCAP = Path("/sys/class/powercap")
ROUNDS = 3
SECONDS = 0.5
"""Of each run in each round: counters step once in a millisecond, so their steps are a fraction of a percent of it."""


class EnergyCounter:
    """The counters of all processor packages of this machine."""

    def __init__(self, folder: Path = POWERCAP) -> None:
        """Finds the counters and reads them once.

        Args:
            folder: where the system keeps them.

        Raises:
            ConfigurationError: if there are none or they may not be read; the message says how to get them.
        """
        # intel-rapl:0 is a package; intel-rapl:0:1 is a part of it, which it counts already.
        self._zones = sorted(zone for zone in folder.glob("intel-rapl:*") if zone.name.count(":") == 1)
        if not self._zones:
            raise ConfigurationError(f"{folder} holds no energy counters (a virtual machine has none)")
        try:
            self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
            self._read()
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"energy counters in {folder} cannot be read ({error}); "
                f"'sudo chmod a+r {folder}/intel-rapl:*/energy_uj' allows it until the next start"
            ) from error

    def millijoules(self, run: Callable[[], object]) -> float:
        """Returns the energy of one call of `run`, from as many calls as half a second takes.

        Raises:
            ConfigurationError: if the counters stand still, as some virtual machines' do.
        """
        before, calls, started = self._read(), 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - started < SECONDS:
            run()
            calls += 1
        each = zip(self._read(), before, self._ranges, strict=True)
        counted = sum((after - first) % full for after, first, full in each)
        if counted == 0:
            raise ConfigurationError(f"the energy counters stand still while {calls:,} inferences run")
        return counted / calls / 1e3

    def of_all(self, runs: Sequence[Callable[[], object]]) -> list[float]:
        """Returns the median energy of each run, millijoules; interleaved, so that what else runs hits all alike."""
        found = [[self.millijoules(run) for run in runs] for _ in range(ROUNDS)]
        return [sorted(column)[ROUNDS // 2] for column in zip(*found, strict=True)]

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]
