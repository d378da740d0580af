"""A network's graph with gaps where its layers are: filled with any layers, it runs as their export would."""

import copy
from collections.abc import Collection, Mapping
from types import MappingProxyType

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.onnx.ops import symbolic, symbolic_multi_out

from plywise.compressors.errors import ModelError
from plywise.compressors.modules.assembly import AroundLayer, assemble
from plywise.compressors.modules.projected_recurrence import ProjectedRecurrence, State
from plywise.env.costs.latency import Chain
from plywise.env.network.network import Layer, Network
from plywise.env.network.recurrent_groups import StandIn
from plywise.env.runtime.decoding import drop_domain, drop_idle_relus, drop_nodes, keep_floats, strip_notes
from plywise.env.runtime.deployed_recurrence import PACKED
from plywise.env.runtime.onnx_export import exported
from plywise.env.runtime.operation_graph import chain_nodes, recurrence_nodes

DOMAIN = "plywise.template"
"""Domain of the nodes that stand in the gaps."""

RELUS = ("Relu", "Clip")


class GraphTemplate:
    """Exports a network once, which takes seconds, and then fills it in milliseconds.

    Attributes:
        nearest: for each layer, by name, the last layer before it whose outputs reach it without passing through
            another one; None where only the network's input does.
    """

    def __init__(self, network: Network, batch: int = 1) -> None:
        """Exports the network without its layers.

        Args:
            network: whose graph it is.
            batch: inputs of one run.

        Raises:
            ModelError: where the network cannot be traced.
        """
        self.layers = network.layers
        self._recurrences: dict[str, ProjectedRecurrence] = {}
        gaps: dict[str, nn.Module] = {}
        for place, layer in enumerate(network.layers):
            owner = layer.name.rpartition(".")[0]
            whole = network.modules[owner]
            if not isinstance(whole, ProjectedRecurrence):
                gaps[layer.name] = _Gap(place, layer, network.modules[layer.name])
            elif owner not in gaps:
                gaps[owner], self._recurrences[owner] = _RecurrentGap(place, whole), whole
        self._proto = exported(assemble(network.model, gaps), network.example, batch)
        strip_notes(self._proto)
        widths = {count for group in network.groups for count in (group.channels, group.channels * group.unit)}
        _free_widths(self._proto, widths, batch)
        self.nearest = self._nearest()

    def filled(self, chains: Mapping[str, Chain], norms: Mapping[str, int] = MappingProxyType({})) -> bytes:
        """Returns a serialised model with random weights, for inputs of the batch.

        Args:
            chains: of each layer, by name.
            norms: channels of the normalisations that have lost some, by name.
        """
        proto = copy.deepcopy(self._proto)
        for constant in proto.graph.initializer:
            width = norms.get(constant.name.rpartition(".")[0])
            if width is not None:
                constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant)[:width], constant.name))
        relus = {node.output[0] for node in self._proto.graph.node if node.op_type in RELUS}
        del proto.graph.node[:]
        for node in self._proto.graph.node:
            if node.domain != DOMAIN:
                proto.graph.node.append(node)
                continue
            layer = self._layer(node)
            if node.op_type == "Recurrence":
                nodes, constants = self._recurrence(layer.name.rpartition(".")[0], chains, node)
                proto.graph.node.extend(nodes)
                proto.graph.initializer.extend(constants)
                continue
            (value,), behind = node.input, layer.relu is not None
            nodes, constants, result = chain_nodes(chains[layer.name], value, f"{layer.name}/", value in relus, behind)
            proto.graph.node.extend([*nodes, onnx.helper.make_node("Identity", [result], [node.output[0]])])
            proto.graph.initializer.extend(constants)
        drop_domain(proto, DOMAIN)
        _skip_identities(proto)
        drop_idle_relus(proto)
        keep_floats(proto)
        return bytes(proto.SerializeToString())

    def _layer(self, node: onnx.NodeProto) -> Layer:
        place: int = node.attribute[0].i
        return self.layers[place]

    def _recurrence(
        self, name: str, chains: Mapping[str, Chain], node: onnx.NodeProto
    ) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        recurrence = self._recurrences[name]
        layers = [
            [(chains[f"{name}.input_{place}"][0], chains[f"{name}.hidden_{place}"][0]) for place in places]
            for places in recurrence.layers
        ]
        return recurrence_nodes(recurrence.mode, layers, node.input, f"{name}/", node.output)

    def _nearest(self) -> dict[str, str | None]:
        places: dict[str, int] = {}  # of the last gap that reaches a value
        found: dict[str, str | None] = {}
        for node in self._proto.graph.node:
            last = max((places.get(name, -1) for name in node.input), default=-1)
            if node.domain == DOMAIN:
                first = self._layer(node)
                found[first.name] = self.layers[last].name if last >= 0 else None
                last = node.attribute[0].i
                if node.op_type == "Recurrence":  # what is inside computes on floats alike
                    inside = f"{first.name.rpartition('.')[0]}."
                    found |= {each.name: first.name for each in self.layers[last + 1 :] if each.name.startswith(inside)}
            places.update(dict.fromkeys(node.output, last))
        return found


class _Gap(AroundLayer):
    """Exports as one node that knows the place of its layer; the layer itself does not run."""

    def __init__(self, place: int, layer: Layer, module: nn.Module) -> None:
        super().__init__()
        self.layer = module
        self.place = place
        self.shape = layer.output_shape

    def forward(self, inputs: Tensor) -> Tensor:
        shape = (inputs.shape[0], *self.shape)
        result: Tensor = symbolic(f"{DOMAIN}::Gap", (inputs,), {"place": self.place}, dtype=torch.float32, shape=shape)
        return result


class _RecurrentGap(StandIn):
    """Exports as one node that knows the place of the first layer of a recurrence, which begins with zeros there."""

    def __init__(self, place: int, recurrence: ProjectedRecurrence) -> None:
        super().__init__(recurrence)
        self.place = place

    def run(self, sequence: Tensor, sizes: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        """Returns results of the shapes that a recurrence gives."""
        if sizes is not None:
            raise ModelError(PACKED)
        count, steps = sequence.shape[:2]
        ends = (len(self.places), count, self.units)
        shapes = [(steps, count, len(self.sources) * self.units), ends, ends][: 3 if self.mode == "LSTM" else 2]
        name, dtypes = f"{DOMAIN}::Recurrence", [torch.float32] * len(shapes)
        read = (sequence.transpose(0, 1), *(state or ()))
        outputs, *states = symbolic_multi_out(name, read, {"place": self.place}, dtypes=dtypes, shapes=shapes)
        return outputs.transpose(0, 1), tuple(states)


def _free_widths(model: onnx.ModelProto, widths: Collection[int], batch: int) -> None:
    """Lets shapes follow the channels: where one entry alone can change with them, the runtime works it out.

    That is the only entry but the batch, or the only one that is a width of the network.
    """
    shapes = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    for constant in model.graph.initializer:
        if constant.name not in shapes:
            continue
        shape = numpy_helper.to_array(constant).copy()
        known = (shape == 1) | ((shape == batch) & (np.arange(len(shape)) == 0))
        free = np.flatnonzero(~known)
        if len(free) > 1:
            free = np.flatnonzero(~known & np.isin(shape, list(widths)))
        if len(free) == 1:
            shape[free] = -1
            constant.CopyFrom(numpy_helper.from_array(shape, constant.name))


def _skip_identities(model: onnx.ModelProto) -> None:
    """Removes nodes that only give a value another name, unless it is that of an output."""
    outputs = {value.name for value in model.graph.output}
    drop_nodes(model, lambda node: node.op_type == "Identity" and node.output[0] not in outputs)
