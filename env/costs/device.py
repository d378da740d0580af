"""The machine that a network will run on."""

from dataclasses import dataclass

from plywise.compressors.recipes.technique import Recipe, Stage
from plywise.env.costs.energy import HOROWITZ, UnitEnergies
from plywise.env.runtime import target_program
from plywise.env.runtime.integer_kernels import FEWEST, UNKNOWN, weight_bits
from plywise.env.runtime.target_program import CPU, CUDA, Execution

MEASURED, MEASURED_ELSEWHERE, DECLARED = "measured", "measured elsewhere", "declared"
"""How latencies are known: timed on this machine, timed on another one, or computed from what is published."""


@dataclass(frozen=True)
class Device:
    """Where latencies hold.

    Attributes:
        name: the processor, or a declared device, for people.
        fingerprint: changes with everything that changes latencies: processor, its instructions, runtime, threads.
        latency_source: how its latencies are known, one of the three.
        threads: threads inside an operation; 0 for all cores of a declared device.
        batch: inputs of one run, whose latency counts.
        provider: who computes, in the words of ONNX Runtime.
        energies: what its operations and bytes cost in the energy model.
        integer_weight_bits: what weights of integer kernels may have at most.
        integer_weight_reason: why.
        memory_bytes: where weights and activations must fit; None where it is not known.
    """

    name: str
    fingerprint: str
    latency_source: str = MEASURED
    threads: int = 1
    batch: int = 1
    provider: str = CPU
    energies: UnitEnergies = HOROWITZ
    memory_bytes: int | None = None
    integer_weight_bits: int = FEWEST
    integer_weight_reason: str = UNKNOWN

    @property
    def is_here(self) -> bool:
        """Whether it is this machine."""
        return self.latency_source == MEASURED

    @property
    def running(self) -> str:
        """How models are run on it, in words."""
        return f"{f'threads: {self.threads}' if self.provider == CPU else self.provider}, batch: {self.batch}"

    @property
    def execution(self) -> Execution:
        """How models are run on it."""
        return Execution(self.threads, self.provider)

    @classmethod
    def here(cls, threads: int = 1, batch: int = 1, provider: str = CPU) -> "Device":
        """Returns this machine's processor, or its graphics card, under ONNX Runtime."""
        mark = target_program.fingerprint(Execution(threads, provider)) + (f"-{batch}" if batch > 1 else "")
        name = target_program.graphics_card() if provider == CUDA else target_program.processor()[0]
        bits, reason = weight_bits(target_program.processor()[1] if provider == CPU else "")
        return cls(
            name,
            mark,
            threads=threads,
            batch=batch,
            provider=provider,
            integer_weight_bits=bits,
            integer_weight_reason=reason,
        )

    def why_refused(self, recipe: Recipe) -> str | None:
        """Returns why integer kernels of the device would compute something else than a recipe says, if they would."""
        if recipe.at(Stage.ACTIVATIONS) is None or recipe.bits <= self.integer_weight_bits:
            return None
        return (
            f"weights of {recipe.bits} bits with 8-bit activations: at most {self.integer_weight_bits} bits are exact "
            f"on {self.name} ({self.integer_weight_reason})"
        )
