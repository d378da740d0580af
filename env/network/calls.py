"""The runs of a network's leaf modules: in which order, on what, and what reads their outputs."""

import math
from dataclasses import dataclass, field

from plywise.env.network.graph import Exit, Graph, Operator

RELUS = ("relu", "relu_", "hardtanh", "hardtanh_", "clamp", "clamp_min")
"""Names of the operators that a ReLU or ReLU6 becomes."""


@dataclass
class Call:
    """One run of a leaf module.

    Attributes:
        name: its dotted name.
        input_shape, output_shape: without the batch dimension.
        numbers: that it reads, of all inputs.
        readers: names of the operators that read the output, in order.
        reading_modules: leaf modules that take the output as it is.
        relu: `(low, high)` of the ReLU that directly follows, or None.
    """

    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    numbers: int
    readers: list[str] = field(default_factory=list)
    reading_modules: list[str] = field(default_factory=list)
    relu: tuple[float, float] | None = None


def calls_in(graph: Graph) -> list[Call]:
    """Returns the runs of leaf modules in order."""
    calls: list[Call] = []
    produced: dict[int, Call] = {}
    for step in graph.steps:
        if isinstance(step, Operator):
            for value in step.reads:
                if value.number in produced:
                    _read(produced[value.number], step)
        elif not step.leaf or step.read is None:
            continue
        elif not isinstance(step, Exit):
            if step.read.number in produced:
                produced[step.read.number].reading_modules.append(step.module)
        elif step.output is not None and (step.made is not None or step.output.number not in produced):
            # Else nn.Identity or an in-place ReLU: what follows reads the call before it.
            call = Call(step.module, step.read.shape[1:], step.output.shape[1:], math.prod(step.read.shape))
            calls.append(call)
            produced[step.output.number] = call
    for call in calls:
        # A ReLU decides the range only where nothing else reads the raw output; in place, all read it after.
        if call.relu is not None and len(call.readers) > 1 and not call.readers[0].endswith("_"):
            call.relu = None
    return calls


def _read(call: Call, by: Operator) -> None:
    call.readers.append(by.name)
    if len(call.readers) == 1 and by.name in RELUS:
        call.relu = _bounds(by)


def _bounds(relu: Operator) -> tuple[float, float] | None:
    if relu.name.startswith("relu"):
        return 0.0, float("inf")
    low = relu.args[1] if len(relu.args) > 1 else -1.0
    high = relu.args[2] if len(relu.args) > 2 and relu.args[2] is not None else float("inf")
    return (0.0, float(high)) if isinstance(low, int | float) and low == 0 else None
