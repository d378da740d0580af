"""Where a network's bytes and milliseconds go, layer by layer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from plywise.compressors.packing.packed_module import packed_size
from plywise.env.costs.chains import realised_chain
from plywise.env.costs.energy import energy_mj
from plywise.env.subject import Subject
from plywise.experiments.handover.files import told

SHARES = (
    "Behind each recipe: what share of the bytes and of the milliseconds of the original's layers the layer has,\n"
    "before -> after."
)


def share_comments(layers: Iterable[str], costs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """Returns for each layer its shares of the original's bytes and milliseconds, before and after.

    Args:
        layers: names, in the order of the walk.
        costs: of each layer `before` and `after`, as `layer_costs` returns them.
    """
    units = {"storage_bytes": "bytes", "latency_ms": "ms"}
    sums = {key: sum(row[key] or 0.0 for row in costs["before"]) for key in units}

    def shares(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
        return ", ".join(
            f"{unit} {100 * before[key] / sums[key]:.1f} -> {100 * after[key] / sums[key]:.1f} %"
            for key, unit in units.items()
            if sums[key] and None not in (before[key], after[key])
        )

    return {
        name: shares(before, after) for name, before, after in zip(layers, costs["before"], costs["after"], strict=True)
    }


def layer_costs(subject: Subject, model: nn.Module) -> list[dict[str, Any]]:
    """Returns what `costs_of` does of the network as it was, or of what it was made into."""
    return costs_of(subject, dict(model.named_modules()))


def costs_of(subject: Subject, modules: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
    """Returns what each layer costs in the shapes that it really has, in the order of the walk.

    Latencies are those of the layers in place, as the price table has them: what is no layer is not in them.

    Args:
        subject: the network under study.
        modules: the layers, by name.
    """
    units = subject.latency.device.energies
    chains = {layer.name: realised_chain(modules[layer.name], layer) for layer in subject.layers}
    return [
        {
            "storage_bytes": packed_size(modules[layer.name]),
            "latency_ms": told(float(milliseconds)),
            "energy_mj": layer.runs * energy_mj(chains[layer.name], units),
            "macs": round(layer.runs * sum(each.macs for each in chains[layer.name])),
        }
        for layer, milliseconds in zip(subject.layers, subject.whole.by_layer(chains), strict=True)
    ]
