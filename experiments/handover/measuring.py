"""What is measured of the files, and one block of figures for each."""

from pathlib import Path
from typing import Any

from torch import nn

from plywise.compressors.errors import ConfigurationError
from plywise.env.costs.chains import realised_chain
from plywise.env.costs.device import DECLARED
from plywise.env.costs.energy import energy_mj
from plywise.env.costs.latency import Chain
from plywise.env.costs.roofline import needed_bytes
from plywise.env.network.samples import Samples
from plywise.env.runtime.energy_counter import card_counter, processor_counter
from plywise.env.runtime.runtime import Timing, measure_energy
from plywise.env.runtime.target_program import CPU
from plywise.env.subject import Subject


def measured_energies(subject: Subject, paths: list[Path]) -> tuple[list[float | None], str]:
    """Returns the measured energy of each file, None where there is none, and what is said about counters."""
    device = subject.latency.device
    unread: list[float | None] = [None] * len(paths)
    if not device.is_here:
        return unread, "not read: the network will run on another device"
    shape = (1, *subject.network.example.shape[1:])
    try:
        if device.provider == CPU:
            found = measure_energy(paths, shape, processor_counter())
            return list(found), "read: whole processor packages, with all that they do besides"
        found = measure_energy(paths, shape, card_counter(), device.execution)
        return list(found), "read: the whole card, with all that it does besides, without the processor"
    except ConfigurationError as error:
        return unread, f"not read: {error}"


def figures(
    subject: Subject,
    model: nn.Module,
    test: Samples,
    storage: float,
    onnx_bytes: int,
    timing: Timing,
    measured_mj: float | None,
) -> dict[str, Any]:
    """Returns the report's block of figures of one network.

    Args:
        subject: the network under study.
        model: the network that the block is about.
        test: samples that nothing has looked at yet.
        storage: bytes of its packed weights.
        onnx_bytes: size of its ONNX file.
        timing: of that file, on this machine.
        measured_mj: millijoules of one inference, None where nothing counts them.
    """
    modules = dict(model.named_modules())
    chains = {layer.name: realised_chain(modules[layer.name], layer) for layer in subject.layers}
    macs = sum(operation.macs for chain in chains.values() for operation in chain)
    device = subject.latency.device
    energy = sum(energy_mj(chain, 0.0, device.energies) for chain in chains.values())
    energy += energy_mj((), storage, device.energies)
    block = {
        "accuracy": test.accuracy(test.logits(model)),
        "storage_bytes": int(storage),
        "onnx_bytes": onnx_bytes,
        "latency_ms": timing.median_ms,
        "latency_quartiles_ms": [timing.low_ms, timing.high_ms],
        "energy_mj": energy if measured_mj is None else measured_mj,
        "energy_source": "modelled" if measured_mj is None else "measured",
        "macs": macs,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    return block if device.is_here else block | _on_device(subject, list(chains.values()))


def _on_device(subject: Subject, chains: list[Chain]) -> dict[str, Any]:
    """Returns what is known about a network on a device that is not this machine."""
    latency, device = subject.latency, subject.latency.device
    found = {
        "device_latency_ms": float(latency.milliseconds(chains).sum()),
        "device_latency_source": latency.source_of(chains),
    }
    if device.latency_source == DECLARED:
        found |= {"energy_source": DECLARED}
    if device.memory_bytes is not None:
        needed = needed_bytes(chains)
        found |= {"memory_needed_bytes": int(needed), "fits_memory": needed <= device.memory_bytes}
    return found
