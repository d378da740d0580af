"""One architecture through everything: studied, compressed by a mixed plan, packed, loaded, exported, compared."""

import math
import random
import re
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from plywise.compressors.packing.packed_file import load_packed, save_packed
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank.bank import Bank
from plywise.env.bank.repair import Repair
from plywise.env.calibration.calibration import calibrate
from plywise.env.network.network import Network
from plywise.env.network.preparation import prepare
from plywise.env.prices.pricing import original_storage
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.runtime import running_model
from plywise.env.task.batch import as_studied
from plywise.env.task.binding import bind
from plywise.env.task.outputs import floats_in
from plywise.env.task.task import Task
from plywise.experiments.breadth.architectures import Architecture

ITEMS = 8
"""Of a batch; four of them are calibrated on."""

RECIPES = (
    "filter_pruning(ratio=0.25) + uniform_quantization(bits=7)",
    "uniform_quantization(bits=4)",
    "low_rank(ratio=0.4) + uniform_quantization(bits=7)",
    "magnitude_pruning(sparsity=0.5) + uniform_quantization(bits=4)",
    "uniform_quantization(bits=7) + activation_quantization",
)
"""What the layers of a plan choose from; one that cannot take its recipe gets the next one that it can."""

PATIENCE = 20
"""Seconds that Torch-Pruning may take to find its groups."""

CLOSE = 0.05
"""Root mean square of what ONNX Runtime may differ by, relative to the outputs: 8-bit kernels round otherwise."""

LAYER_NAMES = r"'[\w.]+'|\w+(?:\.\w+)+|(?<=with )\w+(?= \()|^\w+(?= has the same weight)"
"""What names a layer in a reason: in quotes, with dots, or where sentences have one."""


@dataclass
class Row:
    """What came of one architecture.

    Attributes:
        parameters: how many it has.
        reached: share of them that some technique reaches.
        cut: share of them in layers that channel cuts reach, on either side.
        others_cut: likewise those that Torch-Pruning can cut; None where it fails.
        skipped: modules that are left as they are, by reason.
        uncut: layers whose channels cannot be cut, by reason.
        chosen: layers that take each technique in the plan.
        share: bytes of the packed file over those of the original.
        difference: of ONNX Runtime's outputs, relative to them.
        seconds: of the processor, to study the network and to compress it.
        gigabytes: of memory at most, libraries included and Torch-Pruning not.
        problem: what went wrong; empty where all is well.
    """

    parameters: int = 0
    reached: float = 0.0
    cut: float = 0.0
    others_cut: float | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    uncut: dict[str, int] = field(default_factory=dict)
    chosen: dict[str, int] = field(default_factory=dict)
    share: float = math.nan
    difference: float = math.nan
    seconds: float = 0.0
    gigabytes: float = 0.0
    problem: str = ""


def row_of(architecture: Architecture, name: str, torch_pruning: bool = True) -> dict[str, Any]:
    """Returns the row of an architecture as JSON values; what fails is told in it.

    Args:
        architecture: the network.
        name: what to call it.
        torch_pruning: whether Torch-Pruning is asked as well.
    """
    row, started = Row(), time.process_time()
    try:
        _fill(architecture, name, row)
    except Exception as error:  # a study of what fails must not fail
        row.problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    row.seconds = row.seconds or time.process_time() - started
    row.gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch_pruning and row.parameters:
        row.others_cut = _torch_pruning(architecture)
    return asdict(row)


def _fill(architecture: Architecture, name: str, row: Row) -> None:
    torch.manual_seed(0)
    model = architecture.build().eval()
    row.parameters = sum(parameter.numel() for parameter in model.parameters())
    task = bind(Task([architecture.batch(ITEMS) for _ in range(2)]), prepare(model).model)
    started = time.process_time()
    samples = task.calibration
    network = Network.of(model, samples.joined(4), name, samples.judge.forward)
    row.reached, row.cut = reached(network), cut_share(network)
    row.skipped = counted(network.skipped.values())
    row.uncut = counted(layer.uncut for layer in network.layers if layer.uncut)
    plan = mixed_plan(network)
    row.chosen = dict(Counter(technique.name for recipe in plan.values() for technique in recipe.techniques))
    bank = Bank(network, calibrate(network, samples.laid_out(network.memory_format)))
    compressed = bank.stitch(plan, Repair(inputs=4)).model
    row.seconds = time.process_time() - started
    with tempfile.TemporaryDirectory() as folder:
        weights, onnx = Path(folder) / "weights", Path(folder) / "model.onnx"
        row.share = save_packed(compressed, network.original, weights, {}) / original_storage(network)
        batch = as_studied(architecture.batch(ITEMS))
        expected = _outputs(network, compressed, batch)
        loaded = _outputs(network, load_packed(weights, network.original), batch)
        if not all(bool(tensor.isfinite().all()) for tensor in expected):
            row.problem = "outputs are no numbers"
        elif not all(map(torch.equal, loaded, expected)):
            row.problem = "the packed file gives other outputs"
        export_onnx(compressed, network.interface, onnx)
        found = _outputs(network, running_model(onnx, network.interface, compressed), batch)
        row.difference = max(_apart(*pair) for pair in zip(found, expected, strict=True))
        if not row.problem and not row.difference < CLOSE:
            row.problem = f"ONNX Runtime gives other outputs ({row.difference:.2g})"


def counted(reasons: Iterable[str]) -> dict[str, int]:
    """Returns how often reasons are given, whatever layers they name."""
    return dict(Counter(re.sub(LAYER_NAMES, "...", reason) for reason in reasons))


def _outputs(network: Network, model: nn.Module, batch: Any) -> list[Tensor]:
    with torch.inference_mode():
        return floats_in(network.forward(model, batch))


def _apart(found: Tensor, expected: Tensor) -> float:
    size = float(expected.std()) if expected.numel() > 1 else 1.0
    return float((found - expected).square().mean().sqrt()) / max(size, 1e-12)


def mixed_plan(network: Network) -> Plan:
    """Returns a plan with all kinds of recipes, always the same."""
    chooser, chosen = random.Random(0), {}
    for layer in network.layers:
        first = chooser.randrange(len(RECIPES))
        ordered = [Recipe.parse(text) for text in (*RECIPES[first:], *RECIPES[:first])]
        possible = (recipe for recipe in ordered if network.unsupported(layer.name, recipe) is None)
        chosen[layer.name] = next(possible, Recipe())
    return Plan(network.name, chosen)


def reached(network: Network) -> float:
    """Returns the share of the parameters that some technique reaches."""
    return _share(network.model, (network.modules[layer.name] for layer in network.layers))


def cut_share(network: Network) -> float:
    """Returns the share of the parameters in layers of which channel cuts reach one side at least."""
    sides = (side for group in network.groups for side in (*group.producers, *group.consumers))
    return _share(network.model, (network.modules[side.module] for side in sides))


def _share(model: nn.Module, modules: Iterable[nn.Module]) -> float:
    """Returns the share of a network's parameters that lie in some of its modules; what is shared counts once."""
    inside = {id(parameter): parameter.numel() for module in modules for parameter in module.parameters(recurse=False)}
    return sum(inside.values()) / sum(parameter.numel() for parameter in model.parameters())


def _too_long(*_: Any) -> None:
    raise TimeoutError


def _torch_pruning(architecture: Architecture) -> float | None:
    """Returns the share of the parameters in layers that Torch-Pruning can cut; None where it fails, or takes long."""
    torch.manual_seed(0)
    model, batch = architecture.build().eval(), architecture.batch(2)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(PATIENCE)
    try:
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=batch)
        names: set[nn.Module] = set()
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
        for group in graph.get_all_groups(ignored_layers=last):
            names.update(dependency.target.module for dependency, _ in group)
    except Exception:  # it fails on some networks, which is what the column says
        return None
    finally:
        signal.alarm(0)
    return _share(model, (module for module in names if isinstance(module, nn.Module)))
