"""What others do to the same network, for the technique table: without calibration data, or by other libraries.

Each function writes an ONNX file and returns what is to be said about it. BatchNorms are recalibrated on the same
images that Plywise calibrates on.
"""

import copy
import importlib
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from safetensors.torch import save
from torch import Tensor, nn

from plywise.compressors.errors import ConfigurationError, ModelError
from plywise.compressors.modules.assembly import assemble
from plywise.compressors.modules.layers import weight_of, with_weights
from plywise.compressors.recipes.technique import Technique
from plywise.compressors.statistics.statistics import LayerStatistics
from plywise.env.costs.chains import realised_chain
from plywise.env.network.channel_groups import NORMS
from plywise.env.network.network import Network
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.subject import Subject
from plywise.env.task.interface import INPUT
from plywise.env.task.samples import Labelled

SEARCH_STEPS = 7
"""Halvings of the interval in which the ratio of equal macs lies."""


@dataclass(frozen=True)
class Made:
    """A file that was written.

    Attributes:
        storage_bytes: of the file that is stored.
        macs: of one image.
        seconds: it took to compress, calibration and export left out.
        refused: layers that stayed as they are because the method does not suit them.
    """

    storage_bytes: float
    macs: int
    seconds: float
    refused: int = 0


Maker = Callable[[Subject, Path], Made]


def plain_decomposition(technique: Technique) -> Maker:
    """Returns what decomposes into the same shapes as `technique`, but knows no data: the plain SVD or Tucker.

    On the network as it was trained; its BatchNorms are recalibrated afterwards.
    """

    def make(subject: Subject, path: Path) -> Made:
        network, started, refused = subject.network, time.perf_counter(), 0
        before = dict(network.original.named_modules())
        replaced = {}
        for layer in network.layers[1:-1]:
            module = before[layer.name]
            if technique.unsupported(module) is None:
                replaced[layer.name] = technique.compress(module, LayerStatistics.white(module))
            else:
                refused += 1
        model = copy.deepcopy(assemble(network.original, replaced))
        recalibrate(model, calibration_inputs(subject))
        return _written(model, subject, path, time.perf_counter() - started, refused)

    return make


def torch_pruning(everywhere: bool, macs: Callable[[Subject], int]) -> Maker:
    """Returns Torch-Pruning's pruning by L2 norm with BatchNorm recalibration.

    Args:
        everywhere: whether all channels may go but those of the outputs, or only what `filter_pruning` cuts as well.
        macs: multiply-adds to come nearest to.
    """

    def make(subject: Subject, path: Path) -> Made:
        network, target = subject.network, macs(subject)
        spared = {network.layers[-1].name} if everywhere else {x.name for x in network.layers if x.group is None}
        ratio = _ratio_of(lambda share: macs_of(_cut(network, spared, share), network) - target)
        started = time.perf_counter()
        model = _cut(network, spared, ratio)
        recalibrate(model, calibration_inputs(subject))
        return _written(model, subject, path, time.perf_counter() - started)

    return make


def static_quantiser(subject: Subject, path: Path) -> Made:
    """ONNX Runtime's static quantiser, set up for this kind of processor: U8S8 QDQ, per channel, reduced range."""
    inputs = calibration_inputs(subject)
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / "original.onnx"
        export_onnx(subject.network.model, subject.network.interface, original)
        started = time.perf_counter()
        with _quiet():
            quantize_static(
                original,
                path,
                _Reader(inputs),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
    seconds = time.perf_counter() - started
    return Made(path.stat().st_size, sum(subject.network.macs.values()), seconds)


def torchao_weights(bits: int) -> Maker:
    """Returns torchao's weight-only quantisation, a scale for each output channel.

    It quantises linear layers only, so each layer's weights pass through one of the same matrix.

    Args:
        bits: 8 (its `Int8WeightOnlyConfig`) or 4 (its `IntxWeightOnlyConfig`).
    """

    def make(subject: Subject, path: Path) -> Made:
        network, library = subject.network, _torchao()
        started = time.perf_counter()
        replaced, saved = {}, 0.0
        for layer in network.layers:
            module = network.modules[layer.name]
            weight = weight_of(module)
            replaced[layer.name] = with_weights(module, _rounded(library, weight.flatten(1), bits).view_as(weight))
            saved += weight.numel() * (4 - bits / 8) - 4 * weight.shape[0]
        seconds = time.perf_counter() - started
        model = assemble(network.model, replaced)
        made = _written(model, subject, path, seconds)
        return Made(made.storage_bytes - saved, made.macs, seconds)

    return make


def calibration_inputs(subject: Subject) -> Tensor:
    """Returns the images that the subject was calibrated on, `(n, ...)`."""
    samples = subject.bank.calibration.samples
    assert isinstance(samples, Labelled)
    return samples.inputs


def recalibrate(model: nn.Module, inputs: Tensor) -> None:
    """Sets the statistics of all BatchNorms to those of `inputs`, in place."""
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        model(inputs)
    model.eval()


def macs_of(model: nn.Module, network: Network) -> int:
    """Returns the multiply-adds of one image of a network that was cut from another one."""
    return sum(Network.of(model, network.example, forward=network.forward).macs.values())


def _written(model: nn.Module, subject: Subject, path: Path, seconds: float, refused: int = 0) -> Made:
    network = subject.network
    export_onnx(model, network.interface, path)
    stored = len(save({name: value.contiguous() for name, value in model.state_dict().items()}))
    modules = dict(model.named_modules())
    chains = [realised_chain(modules[layer.name], layer) for layer in network.layers]
    return Made(stored, sum(operation.macs for chain in chains for operation in chain), seconds, refused)


def _cut(network: Network, spared: set[str], ratio: float) -> nn.Module:
    """Returns the original with a share of the channels of each layer removed by Torch-Pruning.

    Raises:
        ModelError: where the network does not run afterwards.
    """
    model = copy.deepcopy(network.original).requires_grad_(True)
    ignored = [module for name, module in model.named_modules() if name in spared]
    importance = tp.importance.MagnitudeImportance(p=2)
    try:
        with _quiet():
            pruner = tp.pruner.MagnitudePruner(
                model,
                network.interface.inputs[INPUT],
                importance=importance,
                pruning_ratio=ratio,
                ignored_layers=ignored,
            )
        pruner.step()
        with torch.no_grad():
            network.run(model)
    except Exception as error:  # whatever third-party surgery raises
        raise ModelError(f"Torch-Pruning leaves a network that does not run: {str(error).splitlines()[0]}") from error
    return model.requires_grad_(False).eval()


def _ratio_of(excess: Callable[[float], int]) -> float:
    """Returns the ratio at which a falling function is nearest to zero."""
    low, high = 0.0, 1.0
    tried = {}
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        tried[middle] = excess(middle)
        if tried[middle] == 0:
            break
        low, high = (middle, high) if tried[middle] > 0 else (low, middle)
    return min(tried, key=lambda ratio: abs(tried[ratio]))


def _rounded(torchao: Any, matrix: Tensor, bits: int) -> Tensor:
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    layer.weight = nn.Parameter(matrix.detach().clone(), requires_grad=False)
    with _quiet():
        if bits == 8:
            config = torchao.Int8WeightOnlyConfig()
        else:
            config = torchao.IntxWeightOnlyConfig(torch.int4, torchao.PerAxis(0))  # type: ignore[attr-defined]
        torchao.quantize_(layer, config)
        found: Tensor = layer.weight.dequantize()
    return found


def _torchao() -> Any:
    try:
        with _quiet():
            return importlib.import_module("torchao.quantization")
    except ImportError as error:
        raise ConfigurationError(
            "torchao is not installed, which only this comparison needs: pip install 'plywise[study]'"
        ) from error


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, inputs: Tensor) -> None:
        self.batches = iter(torch.split(inputs, 64))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch.numpy()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what libraries say about kernels for other machines and about steps that they would like."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
