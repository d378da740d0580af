"""Where a network's bytes and milliseconds go, layer by layer."""

from typing import Any

from torch import nn

from plywise.compressors.packing.packed_module import packed_size
from plywise.env.costs.chains import realised_chain
from plywise.env.costs.energy import energy_mj
from plywise.env.subject import Subject
from plywise.experiments.handover.files import told


def layer_costs(subject: Subject, model: nn.Module) -> list[dict[str, Any]]:
    """Returns what each layer costs in the shapes that it really has, in the order of the walk.

    Latencies are those of the layers in place, as the price table has them: what is no layer is not in them.

    Args:
        subject: the network under study.
        model: the network as it was, or what it was made into.
    """
    modules, units = dict(model.named_modules()), subject.latency.device.energies
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
