"""A network's graph with gaps where its layers are: filled with any layers, it runs as their export would."""

import copy
from collections import Counter
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.onnx.ops import symbolic, symbolic_multi_out

from plywise.compressors.errors import ModelError
from plywise.compressors.modules.assembly import AroundLayer, answer_as, assemble
from plywise.compressors.modules.layers import bias_of, groups_of, is_depthwise, out_channels, weight_of
from plywise.compressors.modules.projected_recurrence import ProjectedRecurrence, State
from plywise.compressors.statistics.channels import rebuilt
from plywise.env.costs.chains import run_on
from plywise.env.costs.latency import Chain
from plywise.env.network.channel_groups import NORMS, channels_in
from plywise.env.network.network import Layer, Network
from plywise.env.network.operation import operations
from plywise.env.runtime.decoding import drop_domain, drop_idle_relus, drop_nodes, keep_floats, strip_notes
from plywise.env.runtime.deployed_recurrence import PACKED
from plywise.env.runtime.onnx_export import exported
from plywise.env.runtime.operation_graph import chain_nodes, recurrence_nodes

DOMAIN = "plywise.template"
"""Domain of the nodes that stand in the gaps."""

RELUS = ("Relu", "Clip")

Widths = list[tuple[int, int]]
"""How many channels each layer reads and makes."""


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
        self._network, self._batch = network, batch
        self._recurrences: dict[str, ProjectedRecurrence] = {}
        self._proto = self._export(self._widths(network.operations), {})
        widths = {count for group in network.groups for count in (group.channels, group.channels * group.unit)}
        self._follows = _free_widths(self._proto, widths, batch)
        self.nearest = self._nearest()

    def filled(self, chains: Mapping[str, Chain], others: Mapping[str, nn.Module] = MappingProxyType({})) -> bytes:
        """Returns a serialised model with random weights, for inputs of the batch.

        Args:
            chains: of each layer, by name.
            others: modules besides layers that have lost channels, by name.
        """
        whole = self._graph(chains, others)
        proto = copy.deepcopy(whole)
        for constant in proto.graph.initializer:
            norm = others.get(constant.name.rpartition(".")[0])
            if isinstance(norm, NORMS):
                kept = numpy_helper.to_array(constant)[: norm.num_features]
                constant.CopyFrom(numpy_helper.from_array(kept, constant.name))
        relus = {node.output[0] for node in whole.graph.node if node.op_type in RELUS}
        del proto.graph.node[:]
        ran: Counter[str] = Counter()
        for node in whole.graph.node:
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
            ran[layer.name] += 1
            prefix = f"{layer.name}/" if ran[layer.name] == 1 else f"{layer.name}/{ran[layer.name]}/"
            chain = run_on(chains[layer.name], tuple(_attributes(node)["read"].ints[1:]))
            nodes, constants, result = chain_nodes(chain, value, prefix, value in relus, behind)
            proto.graph.node.extend([*nodes, onnx.helper.make_node("Identity", [result], [node.output[0]])])
            proto.graph.initializer.extend(constants)
        drop_domain(proto, DOMAIN)
        _skip_identities(proto)
        drop_idle_relus(proto)
        keep_floats(proto)
        return bytes(proto.SerializeToString())

    def _graph(self, chains: Mapping[str, Chain], others: Mapping[str, nn.Module]) -> onnx.ModelProto:
        """Returns the graph to fill: the one that there is, unless it does not follow the channels by itself."""
        widths = self._widths(chains)
        cut = widths != self._widths(self._network.operations)
        if not any(not isinstance(module, NORMS) for module in others.values()) and (self._follows or not cut):
            return self._proto
        return self._export(widths, others)

    def _widths(self, chains: Mapping[str, Chain]) -> Widths:
        """Returns how many channels each layer reads and makes."""
        chain_of_each = (chains[layer.name] for layer in self.layers)
        return [(chain[0].in_channels, _made_by(chain)) for chain in chain_of_each]

    def _export(self, widths: Widths, others: Mapping[str, nn.Module]) -> onnx.ModelProto:
        gaps = dict(others)
        for place, (layer, (inputs, outputs)) in enumerate(zip(self.layers, widths, strict=True)):
            owner = layer.name.rpartition(".")[0]
            whole = self._network.modules[owner]
            if not isinstance(whole, ProjectedRecurrence):
                gaps[layer.name] = _Gap(place, _narrowed(self._network.modules[layer.name], inputs, outputs))
            elif owner not in gaps:
                gaps[owner], self._recurrences[owner] = _RecurrentGap(place, whole, outputs // whole.gates), whole
        proto = exported(assemble(self._network.model, gaps), self._network.interface, self._batch)
        strip_notes(proto)
        return proto

    def _layer(self, node: onnx.NodeProto) -> Layer:
        return self.layers[_attributes(node)["place"].i]

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
        places_of_gaps: Counter[str] = Counter()
        found: dict[str, str | None] = dict.fromkeys(layer.name for layer in self.layers)  # also where nothing reads it
        for node in self._proto.graph.node:
            last = max((places.get(name, -1) for name in node.input), default=-1)
            if node.domain == DOMAIN:
                first = self._layer(node)
                if places_of_gaps[first.name] == 0:
                    found[first.name] = self.layers[last].name if last >= 0 else None
                places_of_gaps[first.name] += 1
                last = _attributes(node)["place"].i
                if node.op_type == "Recurrence":  # what is inside computes on floats alike
                    inside = f"{first.name.rpartition('.')[0]}."
                    found |= {each.name: first.name for each in self.layers[last + 1 :] if each.name.startswith(inside)}
            places.update(dict.fromkeys(node.output, last))
        return found


class _Gap(AroundLayer):
    """Exports as one node that knows the place of its layer and what it reads; the layer itself does not run."""

    def __init__(self, place: int, module: nn.Module) -> None:
        super().__init__()
        self.layer = module
        self.place = place

    def forward(self, input: Tensor) -> Tensor:
        shape = (input.shape[0], *operations(self.layer, input.shape[1:])[-1].output_shape)
        known: dict[str, Any] = {"place": self.place, "read": list(map(int, input.shape))}
        result: Tensor = symbolic(f"{DOMAIN}::Gap", (input,), known, dtype=torch.float32, shape=shape)
        return result


class _RecurrentGap(ProjectedRecurrence):
    """Exports as one node that knows the place of the first layer of a recurrence, which begins with zeros there."""

    def __init__(self, place: int, recurrence: ProjectedRecurrence, units: int) -> None:
        nn.Module.__init__(self)
        answer_as(self, recurrence)
        self.place, self.units, self.features = place, units, recurrence.input_size

    def _reads(self, name: str) -> int:
        return self.features if name == "input_l0" else self.units

    def run(self, sequence: Tensor, sizes: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        """Returns results of the shapes that a recurrence gives."""
        if sizes is not None:
            raise ModelError(PACKED)
        count, steps = sequence.shape[:2]
        ends = (len(self.places), count, self.units)
        shapes = [(steps, count, len(self.layers[0]) * self.units), ends, ends][: 3 if self.mode == "LSTM" else 2]
        name, dtypes = f"{DOMAIN}::Recurrence", [torch.float32] * len(shapes)
        read = (sequence.transpose(0, 1), *(state or ()))
        outputs, *states = symbolic_multi_out(name, read, {"place": self.place}, dtypes=dtypes, shapes=shapes)
        return outputs.transpose(0, 1), tuple(states)


def _attributes(node: onnx.NodeProto) -> dict[str, onnx.AttributeProto]:
    return {attribute.name: attribute for attribute in node.attribute}


def _made_by(chain: Chain) -> int:
    """Returns how many channels a layer makes."""
    last = chain[-1]
    return last.output_shape[-1 if last.kind in ("linear", "embedding", "features") else 0]


def _narrowed(module: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """Returns a layer of the same settings with other numbers of channels; what it computes means nothing."""
    if isinstance(module, nn.Embedding) or (inputs, outputs) == (channels_in(module), out_channels(module)):
        return module
    groups = outputs if is_depthwise(module) else groups_of(module)
    weight = torch.zeros(outputs, inputs // groups, *weight_of(module).shape[2:])
    return rebuilt(module, weight, None if bias_of(module) is None else torch.zeros(outputs), groups)


def _free_widths(model: onnx.ModelProto, widths: Collection[int], batch: int) -> bool:
    """Lets shapes follow the channels: where one entry alone can change with them, the runtime works it out.

    That is the only entry but the batch, or the only one that is a width of the network.

    Returns:
        Whether this is clear for all shapes.
    """
    clear = True
    shapes = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    for constant in model.graph.initializer:
        if constant.name not in shapes:
            continue
        shape = numpy_helper.to_array(constant).copy()
        known = (shape == 1) | ((shape == batch) & (np.arange(len(shape)) == 0))
        free = np.flatnonzero(~known)
        if len(free) > 1:
            free = np.flatnonzero(~known & np.isin(shape, list(widths)))
        if len(free) == 1 and not (shape == -1).any():
            shape[free] = -1
            constant.CopyFrom(numpy_helper.from_array(shape, constant.name))
        else:
            clear = clear and not len(free)
    return clear


def _skip_identities(model: onnx.ModelProto) -> None:
    """Removes nodes that only give a value another name, unless it is that of an output."""
    outputs = {value.name for value in model.graph.output}
    drop_nodes(model, lambda node: node.op_type == "Identity" and node.output[0] not in outputs)
