"""Finishes an exported graph: stored weights decoded by plain ONNX, no idle ReLUs, no debugging notes."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from plywise.env.runtime.deployed_layer import DOMAIN

SLACK = 1e-6
"""Rounding of a float32 scale: how far a range may pass a bound that it was meant to end at."""


PASSED = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")
"""Operations that the runtime moves roundings across."""


def write_decoding(model: onnx.ModelProto) -> None:
    """Replaces the place-holders by nodes that the runtime folds into a plain weight when it loads the file.

    DequantizeLinear would not do: the runtime keeps it and decodes at every inference.
    Symbols of up to 4 bits are packed two to a byte.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.extend(_decoding(node, constants) if node.domain == DOMAIN else [node])
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    model.graph.initializer.extend(tensor for name, tensor in constants.items() if name in used)
    drop_domain(model, DOMAIN)


def store_once(model: onnx.ModelProto) -> None:
    """Keeps one of several equal weights: of layers that run several times, or that have the same one."""
    kept: dict[tuple[Any, ...], str] = {}
    names: dict[str, str] = {}
    for tensor in model.graph.initializer:
        if tensor.dims:
            key = tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes()
            names[tensor.name] = kept.setdefault(key, tensor.name)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
    left = [tensor for tensor in model.graph.initializer if names.get(tensor.name, tensor.name) == tensor.name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(left)


def strip_notes(model: onnx.ModelProto) -> None:
    """Removes what the exporter notes for debugging: stack traces and shapes, which can outweigh small weights."""
    del model.graph.value_info[:], model.graph.metadata_props[:], model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""


def drop_idle_relus(model: onnx.ModelProto) -> None:
    """Removes each ReLU (or ReLU6) whose input is a dequantised number that it cannot change.

    Behind an unsigned code with zero point 0 a ReLU is exactly idle, but the runtime would keep it between two
    integer kernels.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if not tensor.dims}
    source = {name: node for node in model.graph.node for name in node.output}
    outputs = {value.name for value in model.graph.output}

    def idle(node: onnx.NodeProto) -> bool:
        return node.output[0] not in outputs and _is_idle(node, source, constants)

    drop_nodes(model, idle)


def drop_nodes(model: onnx.ModelProto, idle: Callable[[onnx.NodeProto], bool]) -> None:
    """Removes the nodes of which `idle` is true, and gives what reads them what they read.

    Args:
        model: nodes in the order in which they run.
        idle: asked of each node once what it reads is settled; never true of one that makes an output.
    """
    renamed: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        if idle(node):
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def drop_domain(model: onnx.ModelProto, domain: str) -> None:
    """Forgets a domain of which no nodes are left."""
    others = [opset for opset in model.opset_import if opset.domain != domain]
    del model.opset_import[:]
    model.opset_import.extend(others)


def keep_floats(model: onnx.ModelProto) -> None:
    """Keeps the runtime from rounding the weights of layers that compute on floats between two roundings.

    It would take all weights of a layer to 8 bits of one scale and, where it finds no integer kernel then, decode them
    at every inference: a depthwise convolution takes four times as long. It looks for a rounding in front and one
    behind, so a step that changes nothing goes in between, which the runtime merges into the layer's kernel.
    """
    source = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and _would_be_rounded(node, source, readers):
            (result,), node.output[0] = node.output, f"{node.output[0]}_kept"
            nodes.append(helper.make_node("LeakyRelu", [node.output[0]], [result], alpha=1.0))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _would_be_rounded(
    layer: onnx.NodeProto, source: dict[str, onnx.NodeProto], readers: dict[str, list[onnx.NodeProto]]
) -> bool:
    def made_by(name: str) -> str:
        while name in source and source[name].op_type in PASSED:
            name = source[name].input[0]
        return source[name].op_type if name in source else ""

    if made_by(layer.input[0]) != "DequantizeLinear" or made_by(layer.input[1]) == "DequantizeLinear":
        return False
    following = readers.get(layer.output[0], [])
    while len(following) == 1 and following[0].op_type in (*PASSED, "Relu", "Clip"):
        following = readers.get(following[0].output[0], [])
    return len(following) == 1 and following[0].op_type == "QuantizeLinear"


def _is_idle(node: onnx.NodeProto, source: dict[str, onnx.NodeProto], constants: dict[str, NDArray[Any]]) -> bool:
    if node.op_type not in ("Relu", "Clip"):
        return False
    before = source.get(node.input[0])
    if before is None or before.op_type != "DequantizeLinear" or constants.get(before.input[2]) != 0:
        return False
    if node.op_type == "Relu":
        return True
    bounds = [constants.get(name) for name in node.input[1:]]
    largest = 255.0 * float(constants[before.input[1]])
    return len(bounds) == 2 and bounds[0] == 0 and bounds[1] is not None and largest <= float(bounds[1]) * (1 + SLACK)


def _decoding(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> Iterator[onnx.NodeProto]:
    symbols, *tables = node.input
    settings = {attribute.name: attribute.i for attribute in node.attribute}
    shape, result = tuple(constants[symbols].dims), node.output[0]
    stored, values = _stored(constants, symbols, settings["bits"]), f"{result}_cast"
    index = node.op_type in ("Look", "Levels")
    yield helper.make_node("Cast", [stored], [values], to=TensorProto.INT64 if index else TensorProto.FLOAT)
    if node.op_type == "Look":
        flat = _added(constants, f"{result}_rows", np.array([shape[0], -1]))
        yield helper.make_node("Reshape", [values, flat], [f"{result}_flat"])
        yield helper.make_node("GatherElements", [tables[0], f"{result}_flat"], [f"{result}_values"], axis=1)
        yield helper.make_node("Reshape", [f"{result}_values", _shape(constants, result, shape)], [result])
        return
    if node.op_type == "Levels":
        yield helper.make_node("Gather", [tables.pop(0), values], [f"{result}_values"])
        values = f"{result}_values"
    if node.op_type == "ScaleGroups":
        yield from _spread(constants, tables, result, shape, settings["size"])
        *zero, scale = (f"{result}_{table}" for table in tables)
    else:
        *zero, scale = (_column(constants, table, len(shape)) for table in tables)
    if zero:
        yield helper.make_node("Sub", [values, *zero], [f"{result}_centred"])
        values = f"{result}_centred"
    yield helper.make_node("Mul", [values, scale], [result])


def _spread(
    constants: dict[str, TensorProto], tables: list[str], result: str, shape: tuple[int, ...], size: int
) -> Iterator[onnx.NodeProto]:
    """Spreads tables `(out, groups)` over the weights of groups of `size` features."""
    group = _added(constants, f"{result}_group", np.arange(math.prod(shape[1:]), dtype=np.int32) // size)
    for table in tables:
        yield helper.make_node("Gather", [table, group], [f"{result}_{table}_rows"], axis=1)
        full = _shape(constants, result, shape)
        yield helper.make_node("Reshape", [f"{result}_{table}_rows", full], [f"{result}_{table}"])


def _shape(constants: dict[str, TensorProto], result: str, shape: tuple[int, ...]) -> str:
    return _added(constants, f"{result}_shape", np.array(shape))


def _stored(constants: dict[str, TensorProto], name: str, bits: int) -> str:
    """Returns the name of the symbols, packed where they fit into 4 bits."""
    if bits > 4:
        return name
    packed = f"{name}_packed"
    values = numpy_helper.to_array(constants[name])
    pairs = np.pad(values.flatten(), (0, values.size % 2)).reshape(-1, 2)
    content = (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).tobytes()
    constants[packed] = helper.make_tensor(packed, TensorProto.UINT4, values.shape, content, raw=True)
    return packed


def _column(constants: dict[str, TensorProto], name: str, axes: int) -> str:
    """Returns the name of a per-channel vector, shaped to broadcast along dimension 0; one number where it can."""
    values = numpy_helper.to_array(constants[name])
    shaped = values[:1] if (values == values[0]).all() else values.reshape(-1, *(1,) * (axes - 1))
    return _added(constants, f"{name}_{axes}", shaped)


def _added(constants: dict[str, TensorProto], name: str, values: NDArray[Any]) -> str:
    constants[name] = numpy_helper.from_array(values, name)
    return name
