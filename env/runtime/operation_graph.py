"""A chain of operations as one ONNX graph with random weights, written as the export writes a layer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from plywise.env.network.operation import GATHERS, Operation

OPSET = 21
"""The first operator set that can hold 4-bit tensors."""

IR_VERSION = 10


Directions = Sequence[tuple[Operation, Operation]]
"""Of each direction of a layer of a recurrence what it does to the inputs and to the hidden states."""


class _Builder:
    """Collects nodes and initialisers; every method returns the name of its result."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def constant(self, values: NDArray[np.generic]) -> str:
        name = f"{self.prefix}c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{self.prefix}n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def rounded(self, value: str, zero_point: int = 128) -> str:
        """Adds the pair of nodes that stands on both sides of an integer layer."""
        scale, zero = self.constant(np.array(0.02, np.float32)), self.constant(np.array(zero_point, np.uint8))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", value, scale, zero), scale, zero)

    def floats(self, *shape: int) -> str:
        return self.constant((0.05 * self.random.standard_normal(shape)).astype(np.float32))

    def codes(self, *shape: int) -> str:
        """Adds weights of 7 bits with a scale for each output channel."""
        codes = self.constant(self.random.integers(-63, 64, shape).astype(np.int8))
        scale = self.constant(np.full(shape[0], 0.01, np.float32))
        return self.node("DequantizeLinear", codes, scale, self.constant(np.zeros(shape[0], np.int8)), axis=0)

    def chain(
        self, chain: tuple[Operation, ...], value: str, relu_before: bool = False, relu_behind: bool = False
    ) -> str:
        """Adds operations one behind the other, or side by side."""
        source, last = value, len(chain) - 1
        for place, operation in enumerate(chain):
            if operation.kind == "relu" and place and chain[place - 1].integer:
                continue  # the rounding before it cuts what is negative, and the export drops it
            zeros = 128 * (place > 0 or not relu_before), 128 * (place < last or not relu_behind)
            if operation.alongside:
                value = self.node("Concat", value, self.layer(source, operation, *zeros), axis=1)
            else:
                source, value = value, self.layer(value, operation, *zeros)
        return value

    def layer(self, value: str, operation: Operation, zero_before: int = 128, zero_behind: int = 128) -> str:
        """Adds one operation, between roundings where it is an integer one.

        Args:
            value: name of what it reads.
            operation: what it does.
            zero_before, zero_behind: zero points of the roundings; 0 where a ReLU is there, which the runtime drops.
        """
        if operation.kind in GATHERS.values():
            return self.gather(operation, value)
        if operation.kind == "relu":
            return self.node("Relu", value)
        if operation.kind == "embedding":
            return self.node("Gather", self.floats(*operation.weight_shape), value)
        if operation.transposed:
            return self.transposed(operation, value)
        value = self.rounded(value, zero_before) if operation.integer else value
        weight = (self.codes if operation.integer else self.floats)(*operation.weight_shape)
        bias = (self.floats(operation.out_channels),) if operation.bias else ()
        add = self.linear if operation.kind == "linear" else self.convolution
        result = add(operation, value, weight, *bias)
        return self.rounded(result, zero_behind) if operation.integer else result

    def gather(self, operation: Operation, value: str) -> str:
        (axis,) = (axis for axis, kind in GATHERS.items() if kind == operation.kind)
        return self.node("Gather", value, self.constant(self.random.permutation(operation.in_channels)), axis=axis)

    def convolution(self, operation: Operation, *inputs: str) -> str:
        return self.node(
            "Conv",
            *inputs,
            kernel_shape=operation.kernel,
            strides=operation.stride,
            pads=operation.padding,
            dilations=operation.dilation,
            group=operation.groups,
        )

    def transposed(self, operation: Operation, value: str) -> str:
        axes = len(operation.kernel)
        before, after = operation.padding[:axes], operation.padding[axes:]
        weight = self.floats(operation.in_channels, operation.out_channels // operation.groups, *operation.kernel)
        return self.node(
            "ConvTranspose",
            *(value, weight, *((self.floats(operation.out_channels),) if operation.bias else ())),
            kernel_shape=operation.kernel,
            strides=operation.stride,
            pads=before * 2,
            output_padding=[first - last for first, last in zip(before, after, strict=True)],
            dilations=operation.dilation,
            group=operation.groups,
        )

    def linear(self, operation: Operation, value: str, weight: str, *bias: str) -> str:
        rows = operation.input_shape[:-1]
        if operation.groups > 1:
            return self.grouped(operation, value, weight, *bias)
        if not rows:
            return self.node("Gemm", value, weight, *bias, transB=1)
        if operation.integer:
            flat = self.node("Reshape", value, self.constant(np.array([-1, operation.in_channels])))
            product = self.node("Gemm", flat, weight, *bias, transB=1)
            return self.node("Reshape", product, self.constant(np.array([-1, *rows, operation.out_channels])))
        product = self.node("MatMul", value, self.node("Transpose", weight, perm=[1, 0]))
        return self.node("Add", product, *bias) if bias else product

    def recurrence(
        self, value: str, states: Sequence[str], mode: str, layers: Sequence[Directions]
    ) -> tuple[str, list[list[str]]]:
        """Adds a recurrence over `(t, n, features)`; returns its outputs and the last states of each layer."""
        ends = []
        for layer, directions in enumerate(layers):
            hidden, count = directions[0][1].in_channels, len(directions)
            rows = directions[0][1].out_channels
            matrices = [self.floats(count, rows, operation.in_channels) for operation in directions[0]]
            names = [f"{self.prefix}n{len(self.nodes)}_{place}" for place in range(3 if mode == "LSTM" else 2)]
            settings: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional" if count > 1 else "forward"}
            if mode == "GRU":
                settings["linear_before_reset"] = 1
            bounds = [self.constant(np.array([place * count])) for place in (layer, layer + 1)]
            first = [self.node("Slice", state, *bounds, self.constant(np.array([0]))) for state in states]
            inputs = [value, *matrices, self.floats(count, 2 * rows), "", *first]
            self.nodes.append(helper.make_node(mode, inputs, names, name=names[0], **settings))
            ends.append(names[1:])
            # (t, directions, n, hidden) to (t, n, directions * hidden)
            turned = self.node("Transpose", names[0], perm=[0, 2, 1, 3])
            value = self.node("Reshape", turned, self.constant(np.array([0, 0, -1])))
        return value, ends

    def grouped(self, operation: Operation, value: str, weight: str, *bias: str) -> str:
        groups, outputs, inputs = operation.groups, *operation.weight_shape
        blocks = self.node("Reshape", weight, self.constant(np.array([groups, outputs // groups, inputs])))
        rows = self.node("Reshape", value, self.constant(np.array([-1, groups, 1, inputs])))
        product = self.node("MatMul", rows, self.node("Transpose", blocks, perm=[0, 2, 1]))
        shape = [-1, *operation.output_shape]
        flat = self.node("Reshape", product, self.constant(np.array(shape)))
        return self.node("Add", flat, *bias) if bias else flat


def chain_nodes(
    chain: tuple[Operation, ...], value: str, prefix: str, relu_before: bool, relu_behind: bool
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], str]:
    """Returns nodes and constants that run `chain` on `value`, and the name of the result.

    Args:
        chain: what runs.
        value: name of what it reads.
        prefix: of all new names.
        relu_before, relu_behind: whether a ReLU makes what it reads, and changes what it makes.
    """
    builder = _Builder(prefix)
    result = builder.chain(chain, value, relu_before, relu_behind)
    return builder.nodes, builder.constants, result


def recurrence_nodes(
    mode: str, layers: Sequence[Directions], inputs: Sequence[str], prefix: str, results: Sequence[str]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Returns nodes and constants that run a recurrence.

    Args:
        mode: `LSTM` or `GRU`.
        layers: of each layer and direction the operations on the inputs and on the hidden states.
        inputs: names of what it reads, `(t, n, features)`, and of the states to begin with unless these are zeros.
        prefix: of all new names.
        results: names for the outputs `(t, n, directions * hidden)` and for the last states of all layers.
    """
    builder = _Builder(prefix)
    outputs, ends = builder.recurrence(inputs[0], inputs[1:], mode, layers)
    builder.nodes.append(helper.make_node("Identity", [outputs], [results[0]]))
    for name, each in zip(results[1:], zip(*ends, strict=True), strict=True):
        if name:  # read by something
            builder.nodes.append(helper.make_node("Concat", each, [name], axis=0))
    return builder.nodes, builder.constants


def operation_graph(chain: tuple[Operation, ...]) -> bytes:
    """Returns a serialised model that runs `chain` from `input` to `output`; an empty chain only copies one number."""
    builder = _Builder()
    value = builder.chain(chain, "input")
    builder.nodes.append(helper.make_node("Identity", [value], ["output"]))
    first, last = (chain[0].input_shape, chain[-1].output_shape) if chain else ((1,), (1,))
    indices = bool(chain) and chain[0].kind == "embedding"
    graph = helper.make_graph(
        builder.nodes,
        "chain",
        [
            helper.make_tensor_value_info(
                "input", TensorProto.INT64 if indices else TensorProto.FLOAT, ["batch", *first]
            )
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", *last])],
        builder.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())
