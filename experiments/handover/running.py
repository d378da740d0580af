"""How files are run while they are timed: as the device runs them where it is this machine, else on one thread."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plywise.compressors.errors import FileFormatError
from plywise.env.costs.device import MEASURED, Device
from plywise.env.runtime.runtime import ONE_THREAD
from plywise.env.runtime.target_program import CPU, CUDA, Execution


@dataclass(frozen=True)
class Running:
    """How files are run on this machine.

    Attributes:
        is_device: whether this machine is the device.
        execution: threads, and who computes.
        batch: inputs of one run.
    """

    is_device: bool
    execution: Execution
    batch: int

    @classmethod
    def on(cls, device: Device, any_batch: bool) -> "Running":
        """Returns how files are run for a device; one input at a time unless they take any batch."""
        execution = device.execution if device.is_here else ONE_THREAD
        return cls(device.is_here, execution, device.batch if any_batch else 1)

    @classmethod
    def reported(cls, report: Mapping[str, Any]) -> "Running":
        """Returns how the files of a report were run.

        Raises:
            FileFormatError: where the report does not say so.
        """
        try:
            device, batch = report["device"], report["compressed"].get("batch", 1)
            is_device = device["latency_source"] == MEASURED
            threads, provider = device["threads"], device["provider"]
        except (KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(f"the report does not say on which device files were timed ({error})") from error
        counts = all(isinstance(number, int) and number >= 0 for number in (threads, batch)) and batch >= 1
        if not counts or provider not in (CPU, CUDA):
            raise FileFormatError(
                f"the report was timed with threads {threads!r}, batch {batch!r} and provider {provider!r}; whole "
                f"numbers and one of {CPU}, {CUDA} are allowed: compress again or restore it"
            )
        return cls(is_device, Execution(threads, provider) if is_device else ONE_THREAD, batch)

    @property
    def words(self) -> str:
        """How files are run, in words."""
        who = f"threads: {self.execution.threads}" if self.execution.provider == CPU else self.execution.provider
        return f"{who}, batch: {self.batch}"
