"""Energy counters of processors and graphics cards, where the system lets us read them.

Sources: the Linux power capping framework (Documentation/power/powercap/powercap.rst): RAPL counts the microjoules of
each processor package, AMD's too, in `energy_uj`, from 0 again after `max_energy_range_uj`. Since Linux 5.10 only root
may read it. NVIDIA's Management Library (`nvmlDeviceGetTotalEnergyConsumption`) counts the millijoules of a card, from
Volta on, and renews its figure every 20 to 100 ms. Both count all that is done there, so a busy machine reads too much.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from plywise.compressors.errors import ConfigurationError

POWERCAP = Path("/sys/class/powercap")
RANGE_OF_CARDS = 1000 * 2**64
ROUNDS = 3
SECONDS, CARD_SECONDS = 0.5, 3.0
"""Of each run in each round. RAPL steps once in a millisecond, a card up to a hundred times less often: of what is
counted, a step is a fraction of a percent with the one, and 3 % at most with the other."""


class EnergyCounter:
    """Counters of microjoules, read around many calls of what is to be measured."""

    def __init__(self, read: Callable[[], Sequence[int]], ranges: Sequence[int], seconds: float) -> None:
        """Reads them once.

        Args:
            read: returns what each counter shows.
            ranges: what each counts to before it starts at 0 again.
            seconds: of each measurement.
        """
        self._read, self._ranges, self._seconds = read, ranges, seconds
        read()

    def millijoules(self, run: Callable[[], object]) -> float:
        """Returns the energy of one call of `run`, from as many calls as the seconds of a measurement take.

        Raises:
            ConfigurationError: if the counters stand still, as some virtual machines' do.
        """
        before, calls, started = self._read(), 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - started < self._seconds:
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


def processor_counter(folder: Path = POWERCAP) -> EnergyCounter:
    """Returns the counters of all processor packages of this machine.

    Args:
        folder: where the system keeps them.

    Raises:
        ConfigurationError: if there are none or they may not be read; the message says how to get them.
    """
    # intel-rapl:0 is a package; intel-rapl:0:1 is a part of it, which it counts already.
    zones = sorted(zone for zone in folder.glob("intel-rapl:*") if zone.name.count(":") == 1)
    if not zones:
        raise ConfigurationError(f"{folder} holds no energy counters (a virtual machine has none)")

    def read() -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in zones]

    try:
        return EnergyCounter(read, [int((zone / "max_energy_range_uj").read_text()) for zone in zones], SECONDS)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"energy counters in {folder} cannot be read ({error}); "
            f"'sudo chmod a+r {folder}/intel-rapl:*/energy_uj' allows it until the next start"
        ) from error


def card_counter() -> EnergyCounter:
    """Returns the counter of the first NVIDIA card, without the processor alongside it.

    Raises:
        ConfigurationError: if the package that reads it is missing, or there is no driver or no such counter.
    """
    try:
        import pynvml
    except ImportError as error:
        raise ConfigurationError(
            "a card's energy is read with NVIDIA's package, which is missing; 'pip install nvidia-ml-py' brings it"
        ) from error
    try:
        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByIndex(0)
        return EnergyCounter(
            lambda: [1000 * pynvml.nvmlDeviceGetTotalEnergyConsumption(card)], [RANGE_OF_CARDS], CARD_SECONDS
        )
    except pynvml.NVMLError as error:
        raise ConfigurationError(f"the card's energy counter cannot be read ({error})") from error
