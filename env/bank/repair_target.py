"""What a repaired network is held against: what its original puts out on the same calibration inputs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.modules.layers import channels_last, out_channels
from plywise.env.bank.least_squares import LEAST_ROWS, refits, rows_for
from plywise.env.calibration.calibration import Moments, moments
from plywise.env.network.graph import read_by
from plywise.env.network.layer_outputs import layer_outputs
from plywise.env.network.network import Network
from plywise.env.network.shortcuts import Shortcut
from plywise.env.task.batch import Batch

MOST_ROWS = 4096
"""Places of a layer's outputs that are kept, at most."""

MOST_BYTES = 256 * 2**20
"""What they take of a network of many channels, at most: of its layers fewer places are kept."""


@dataclass(frozen=True, eq=False)
class Target:
    """Of one layer or BatchNorm, or of some of its output channels.

    Attributes:
        moments: of its outputs.
        last: whether channels are the last axis of its outputs, rather than the one behind the batch.
        rows: `(rows, out)` its outputs at `places_of` and what the network adds to them; none where it is not refitted.
        shortcut: where that is to be seen, or None.
        once: whether it runs once; what runs several times, and is seen in its first run, gets back its means alone.
    """

    moments: Moments
    last: bool
    rows: Tensor
    shortcut: Shortcut | None = None
    once: bool = True

    def of(self, channels: Tensor) -> "Target":
        """Returns the target of some output channels (indices)."""
        if torch.equal(channels, torch.arange(len(self.moments.mean))):
            return self  # all of them, as most often
        found = Moments(self.moments.mean[channels], self.moments.deviation[channels])
        return replace(self, moments=found, rows=self.rows[:, channels])


def find_targets(network: Network, batch: Batch) -> dict[str, Target]:
    """Runs the original over calibration inputs, one batch, and returns the target of each layer and BatchNorm."""
    modules = {layer.name: network.modules[layer.name] for layer in network.layers}
    refitted = {name: module for name, module in modules.items() if refits(module)}
    most = MOST_BYTES // (4 * max(1, sum(map(out_channels, refitted.values()))))
    counts = {name: min(rows_for(module), MOST_ROWS, max(LEAST_ROWS, most)) for name, module in refitted.items()}
    found: dict[str, Target] = {}
    alongside: dict[str, Tensor] = {}

    def record(name: str, module: nn.Module, _: Tensor, outputs: Tensor) -> None:
        if name in found:  # it runs again: weights that are fitted to its first run would be wrong for this one
            found[name] = replace(found[name], rows=found[name].rows[:0], shortcut=None, once=False)
            return
        last = channels_last(module)
        rows = rows_of(outputs, places_of(outputs, last, counts.get(name, 0)), last)
        shortcut = network.shortcuts[name] if name in alongside else None
        rows = rows if shortcut is None else rows + alongside[name]
        found[name] = Target(moments(outputs, last), last, rows, shortcut)

    places = {
        name: (place, channels_last(modules[name]), counts[name])
        for name, place in network.shortcuts.items()
        if name in counts
    }
    with torch.no_grad(), layer_outputs(network, record), watched(network.model, places, alongside):
        network.forward(network.model, batch)
    return found


@contextmanager
def watched(
    model: nn.Module, shortcuts: Mapping[str, tuple[Shortcut, bool, int]], found: dict[str, Tensor]
) -> Iterator[None]:
    """Puts into `found`, while `model` runs, what is added to the outputs of layers, by their names.

    Args:
        model: the network or what was made of it.
        shortcuts: where to look, whether channels are the last axis, and at how many places, by layer.
        found: gets `(rows, out)` at `places_of` the outputs.
    """

    def look(layer: str, tensor: Tensor | None) -> None:
        _, last, rows = shortcuts[layer]
        assert tensor is not None, f"nothing is added to the outputs of {layer}"
        found[layer] = rows_of(tensor, places_of(tensor, last, rows), last)

    def before(layer: str) -> Any:
        return lambda module, args, keywords: look(layer, read_by(args, keywords))

    def after(layer: str) -> Any:
        return lambda module, args, output: look(layer, output)

    handles: list[Any] = []
    try:
        for layer, (place, _, _) in shortcuts.items():
            module = model.get_submodule(place.module)
            if place.read:
                handles.append(module.register_forward_pre_hook(before(layer), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(after(layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def places_of(outputs: Tensor, last: bool, rows: int) -> Tensor:
    """Returns up to `rows` random places among outputs, counted over all inputs and positions; always the same ones."""
    return _shuffled(outputs.numel() // outputs.shape[-1 if last else 1])[:rows]


def rows_of(outputs: Tensor, places: Tensor, last: bool) -> Tensor:
    """Returns the channels `(rows, out)` at some places.

    Args:
        outputs: `(n, out, ...)`, or `(n, ..., out)` where the channels are the `last` axis.
        places: `(rows,)`.
        last: where the channels are.
    """
    if last or outputs.dim() == 2:
        return outputs.flatten(0, -2)[places]
    positions = outputs[0, 0].numel()
    rows: Tensor = outputs.flatten(2)[places // positions, :, places % positions]
    return rows


@lru_cache(64)
def _shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:MOST_ROWS].clone()
