"""A network's graph with gaps where its layers are: filled with any layers, it runs as their export would."""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from plywise.compressors.assembly import assemble
from plywise.env.decoding import drop_idle_relus
from plywise.env.latency import Chain
from plywise.env.network import Layer, Network
from plywise.env.onnx_export import export_onnx
from plywise.env.operation_graph import chain_nodes

DOMAIN = "plywise.mould"
"""Domain of the nodes that stand in the gaps."""


class Mould:
    """Exports a network once, which takes seconds, and then fills it in milliseconds.

    What is between the layers keeps the original's numbers of channels, so chains must keep them at their ends.
    """

    def __init__(self, network: Network) -> None:
        """Exports the network without its layers.

        Raises:
            ModelError: where the network cannot be traced.
        """
        gaps = {layer.name: _Gap(place, layer) for place, layer in enumerate(network.layers)}
        self.layers = network.layers
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mould.onnx"
            export_onnx(assemble(network.model, gaps), network.example, path)
            self._proto = onnx.load(path)

    def filled(self, chains: Mapping[str, Chain]) -> bytes:
        """Returns a serialised model with random weights.

        Args:
            chains: of each layer, by name.
        """
        proto = copy.deepcopy(self._proto)
        del proto.graph.node[:]
        for node in self._proto.graph.node:
            if node.domain != DOMAIN:
                proto.graph.node.append(node)
                continue
            place = node.attribute[0].i
            layer = self.layers[place]
            zero_point = 128 if layer.relu is None else 0
            nodes, constants, result = chain_nodes(chains[layer.name], node.input[0], f"layer{place}_", zero_point)
            proto.graph.node.extend([*nodes, onnx.helper.make_node("Identity", [result], [node.output[0]])])
            proto.graph.initializer.extend(constants)
        others = [opset for opset in proto.opset_import if opset.domain != DOMAIN]
        del proto.opset_import[:]
        proto.opset_import.extend(others)
        _skip_identities(proto)
        drop_idle_relus(proto)
        return bytes(proto.SerializeToString())


class _Gap(nn.Module):
    """Exports as one node that knows the place of its layer."""

    def __init__(self, place: int, layer: Layer) -> None:
        super().__init__()
        self.place = place
        self.shape = layer.output_shape

    def forward(self, inputs: Tensor) -> Tensor:
        shape = (inputs.shape[0], *self.shape)
        result: Tensor = symbolic(f"{DOMAIN}::Gap", (inputs,), {"place": self.place}, dtype=inputs.dtype, shape=shape)
        return result


def _skip_identities(model: onnx.ModelProto) -> None:
    """Removes nodes that only give a value another name, unless it is that of an output."""
    outputs = {value.name for value in model.graph.output}
    renamed: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        if node.op_type == "Identity" and node.output[0] not in outputs:
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
