"""Writes a network as a file that ONNX Runtime runs."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import ModelError
from plywise.env.runtime.decoding import drop_idle_relus, keep_floats, strip_notes, write_decoding
from plywise.env.runtime.deployed_layer import deployed
from plywise.env.runtime.operation_graph import OPSET


def export_onnx(model: nn.Module, example: Tensor, path: Path) -> bool:
    """Writes `model`, compressed or not, as one self-contained ONNX file.

    Input `input`, output `output`; the batch is dynamic unless the network's own forward fixes it, then it is 1.
    Layers with a weight format are stored in its few bits; a layer inside `StaticQuantized` runs on 8-bit integers.

    Args:
        model: the network; left untouched.
        example: an input `(n, ...)`.
        path: where to write; replaced atomically.

    Returns:
        Whether the file runs on any batch.

    Raises:
        ModelError: where the network cannot be traced.
    """
    proto = exported(model, example, None)
    fixed = proto.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    if fixed:
        # The network's forward turns the batch into a plain number; then one image at a time is what it can do.
        proto = exported(model, example, 1)
    write_decoding(proto)
    drop_idle_relus(proto)
    keep_floats(proto)
    strip_notes(proto)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(path), proto.SerializeToString())
    return not fixed


def exported(model: nn.Module, example: Tensor, batch: int | None) -> onnx.ModelProto:
    """Returns the exporter's graph of a model, as it comes.

    Args:
        model: what to export.
        example: an input `(n, ...)`.
        batch: on how many inputs at once the graph shall run, any number where None.

    Raises:
        ModelError: where the network cannot be traced.
    """
    dynamic = ({0: torch.export.Dim("batch")},) if batch is None else None
    # A batch of one would be taken for a fixed size.
    inputs = example[:1].expand(batch or 2, *example.shape[1:]).contiguous()
    try:
        with _quiet():
            program = torch.onnx.export(
                deployed(model),
                (inputs,),
                dynamo=True,
                external_data=False,
                dynamic_shapes=dynamic,
                input_names=["input"],
                output_names=["output"],
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ModelError(f"the network cannot be exported to ONNX: {_first_line(error)}") from error
    assert program is not None
    return program.model_proto


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what the exporter says about itself: torchvision's absence and a deprecation inside torch."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")

    def not_torchvision(record: logging.LogRecord) -> bool:
        return "torchvision is not installed" not in record.msg

    logger.addFilter(not_torchvision)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            yield
    finally:
        logger.removeFilter(not_torchvision)
