"""Does choosing channels at run time pay? `python -m plywise.experiments.studies.gating_study` times it in the runtime.

Feature boosting and suppression (Gao et al., Dynamic Channel Pruning, 2019; Mayo's channel gating) predicts from the
mean of each input channel which output channels matter for this image, and computes only those. A runtime without
such a kernel has to gather their weights for every image; that is the cheapest it can be done in ONNX.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save
from rich.console import Console

from plywise.env.runtime.runtime import time_models
from plywise.experiments.workbench.results_page import Page

LAYERS = ((16, 32), (32, 16), (64, 8), (128, 16), (256, 8), (512, 4))
"""Channels in and out, and height and width: ResNet-20's three, then VGG-16's."""

KEPT = (0.5, 0.25)
"""Shares of the output channels that are computed."""


def main() -> None:
    """Times a 3x3 convolution in full, with gates that choose for each image, and cut once and for all."""
    started = time.perf_counter()
    rows = [measured(channels, side) for channels, side in LAYERS]
    page = Page("gating_study", "python -m plywise.experiments.studies.gating_study", time.perf_counter() - started)
    page.text(
        "A 3x3 convolution, batch 1, one thread, float32, ONNX Runtime, medians of interleaved runs, shares of the "
        "full layer's; above 1, gating is slower than computing everything. Gated: global mean, a linear layer, the "
        "largest k gates, gathered weights, convolution, outputs times gates; the zeros of the other channels are not "
        "even put back. Cut: the same k channels for every image, as filter_pruning leaves them."
    )
    page.table(
        ("channels x side", "full, ms", *(f"{what} to {share:.0%}" for share in KEPT for what in ("gated", "cut"))),
        rows,
    )
    page.write(Console())


def measured(channels: int, side: int) -> tuple[str, ...]:
    """Returns one line: the full layer's milliseconds, then shares of them."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [write(Path(folder) / "full.onnx", channels, channels, side, gated=False)]
        for share in KEPT:
            for gated in (True, False):
                name = f"{share}-{gated}.onnx"
                paths.append(write(Path(folder) / name, channels, int(channels * share), side, gated))
        timings = [timing.median_ms for timing in time_models(paths, (1, channels, side, side), repeats=300)]
    return (f"{channels} x {side}", f"{timings[0]:.4f}", *(f"{own / timings[0]:.2f}" for own in timings[1:]))


def write(path: Path, channels: int, kept: int, side: int, gated: bool) -> Path:
    """Writes a convolution of `kept` out of `channels` filters, gated or cut."""
    generator = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)

    filters = channels if gated else kept
    tensors = [tensor("weight", filters, channels, 3, 3)]
    nodes = []
    if gated:
        tensors += [tensor("gate_weight", channels, channels), tensor("gate_bias", channels)]
        tensors += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in (
            ("k", [kept]), ("flat", [-1]), ("column", [1, -1, 1, 1]))]  # fmt: skip
        nodes += [
            helper.make_node("GlobalAveragePool", ["input"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["means"]),
            helper.make_node("Gemm", ["means", "gate_weight", "gate_bias"], ["gates"]),
            helper.make_node("TopK", ["gates", "k"], ["largest", "chosen"], sorted=0),
            helper.make_node("Reshape", ["chosen", "flat"], ["filters"]),
            helper.make_node("Gather", ["weight", "filters"], ["gathered"], axis=0),
            helper.make_node("Conv", ["input", "gathered"], ["answer"], pads=[1, 1, 1, 1]),
            helper.make_node("Reshape", ["largest", "column"], ["boost"]),
            helper.make_node("Mul", ["answer", "boost"], ["output"]),
        ]
    else:
        nodes.append(helper.make_node("Conv", ["input", "weight"], ["output"], pads=[1, 1, 1, 1]))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, channels, side, side))],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, (1, kept, side, side))],
        tensors,
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


if __name__ == "__main__":
    main()
