"""Writes a network as a file that ONNX Runtime runs."""

import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import ModelError
from plywise.env.runtime.decoding import drop_idle_relus, keep_floats, store_once, strip_notes, write_decoding
from plywise.env.runtime.deployed_layer import deployed
from plywise.env.runtime.operation_graph import OPSET
from plywise.env.task.interface import Interface, interface_of


def export_onnx(
    model: nn.Module, example: Tensor | Interface, path: Path, other: Mapping[str, Tensor] | None = None
) -> bool:
    """Writes `model`, compressed or not, as one self-contained ONNX file.

    Input `input`, output `output` where there is one of each; else parameters of forward and entries of its outputs
    give the names. The batch is dynamic unless the network's own forward fixes it, then it is 1. Layers with a weight
    format are stored in its few bits; a layer inside `StaticQuantized` runs on 8-bit integers.

    Args:
        model: the network; left untouched.
        example: an input `(n, ...)`, or how the network is called.
        path: where to write; replaced atomically.
        other: inputs of another call by name; axes along which they are longer or shorter are dynamic as well.

    Returns:
        Whether the file runs on any batch.

    Raises:
        ModelError: where the network cannot be traced.
    """
    interface = interface_of(model, example) if isinstance(example, Tensor) else example
    try:
        proto = exported(model, interface, None, other)
        fixed = any(_is_fixed(value) for value in proto.graph.input if 0 in _dynamic_axes(interface, value.name, None))
    except ModelError:
        fixed = True
    if fixed:
        # The network's forward turns the batch into a plain number; then one item at a time is what it can do.
        proto = exported(model, interface, 1)
    write_decoding(proto)
    drop_idle_relus(proto)
    keep_floats(proto)
    strip_notes(proto)
    store_once(proto)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(path), proto.SerializeToString())
    return not fixed


def exported(
    model: nn.Module, interface: Interface, batch: int | None, other: Mapping[str, Tensor] | None = None
) -> onnx.ModelProto:
    """Returns the exporter's graph of a model, as it comes.

    Args:
        model: what to export.
        interface: how it is called.
        batch: on how many inputs at once the graph shall run, any number where None.
        other: as for `export_onnx`.

    Raises:
        ModelError: where the network cannot be traced.
    """
    new = deployed(model)
    dynamic: Any = None
    if batch is None:
        dynamic = tuple(_dynamic_axes(interface, name, other) for name in interface.inputs)
        dynamic = dynamic if interface.is_simple else (dynamic,)
    try:
        with _quiet():
            program = torch.onnx.export(
                new if interface.is_simple else interface.flat(new),
                tuple(interface.at(batch or 2).values()),  # a batch of one would be taken for a fixed size
                dynamo=True,
                external_data=False,
                dynamic_shapes=dynamic,
                input_names=list(interface.inputs),
                output_names=list(interface.output_names),
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = _first_line(error)
        if "data-dependent" in reason:
            reason = (
                "its forward branches on the values of a tensor, which no file of it can: write torch.where(condition, "
                f"a, b) in place of 'if' ({reason})"
            )
        raise ModelError(f"the network cannot be exported to ONNX: {reason}") from error
    assert program is not None
    return program.model_proto


def _dynamic_axes(interface: Interface, name: str, other: Mapping[str, Tensor] | None) -> dict[int, str]:
    """Returns the names of an input's dynamic axes: the batch, and what another call has longer or shorter."""
    tensor = interface.inputs[name]
    axes = {0: "batch"} if interface.has_items(name) else {}
    if other is not None and tensor.dim() == other[name].dim():
        sizes = zip(tensor.shape, other[name].shape, strict=True)
        axes |= {axis: f"{name}_{axis}" for axis, (own, its) in enumerate(sizes) if own != its and axis not in axes}
    return axes


def _is_fixed(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.shape.dim[0].HasField("dim_value"))


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what the exporter says about itself: torchvision's absence, a deprecation inside torch, failed graphs.

    A graph that it cannot export it prints as a whole; the error that it raises then says why.
    """
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")

    def not_torchvision(record: logging.LogRecord) -> bool:
        return "torchvision is not installed" not in record.msg

    logger.addFilter(not_torchvision)
    shapes = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level, said = shapes.level, io.StringIO()
    shapes.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            warnings.filterwarnings("ignore", message="# The axis name: .* will not be used")
            with redirect_stderr(said):
                yield
        sys.stderr.write(said.getvalue())
    finally:
        shapes.setLevel(level)
        logger.removeFilter(not_torchvision)
