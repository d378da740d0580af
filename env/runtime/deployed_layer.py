"""Layers as the runtime shall see them: the torch modules that the exporter walks instead of ours.

Each writes the ONNX nodes that it needs itself, so nothing has to be found again in the exported graph.
"""

import copy

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from plywise.compressors.formats.grouped_format import GroupedFormat
from plywise.compressors.formats.level_format import LevelFormat
from plywise.compressors.formats.weight_format import UniformFormat, WeightFormat, weight_format
from plywise.compressors.modules.assembly import AroundLayer, answer_as, copied
from plywise.compressors.modules.composition import Chain
from plywise.compressors.modules.integer_layer import IntegerLayer
from plywise.compressors.modules.layers import native_weight, weight_of
from plywise.compressors.modules.projected_recurrence import ProjectedRecurrence
from plywise.compressors.modules.static_quantized import ActivationRange, StaticQuantized
from plywise.env.runtime.deployed_recurrence import DeployedRecurrence

DOMAIN = "plywise"
"""Domain of the place-holders for stored weights, which `decoding` replaces by plain ONNX."""


def deployed(model: nn.Module) -> nn.Module:
    """Returns a copy of `model` whose compressed layers export as small weights and integer kernels."""
    return _deployed(copied(model).eval())


def _deployed(module: nn.Module) -> nn.Module:
    if isinstance(module, StaticQuantized):
        # Without an integer kernel it keeps its roundings and runs on floats.
        integers = IntegerLayer.of(module.layer, module.input_range.scale)
        inner = _deployed(module.layer) if integers is None else _IntegerLayer(module, integers)
        return _RoundedLayer(inner, module.input_range, module.output_range)
    fmt = weight_format(module)
    if fmt is not None:
        return _StoredLayer(module, fmt)
    if isinstance(module, Chain):
        return _DeployedChain(module)
    for name, child in module._modules.items():
        if child is not None:
            # A recurrence multiplies out the matrices of a chain itself.
            if type(module) is ProjectedRecurrence and isinstance(child, Chain):
                new: nn.Module = nn.Sequential(*map(_deployed, child))
            else:
                new = _deployed(child)
            module._modules[name] = new
            answer_as(new, child)
    return DeployedRecurrence(module) if type(module) is ProjectedRecurrence else module


class _StoredLayer(AroundLayer):
    """A float layer whose weight lies in the file as symbols; the runtime decodes it once, when it loads."""

    symbols: Tensor

    def __init__(self, layer: nn.Module, fmt: WeightFormat) -> None:
        super().__init__()
        weight = weight_of(layer)
        self.layer = _without(layer, "weight")
        self.operator, tables = _coding(fmt, weight)
        self.bits = fmt.bits
        self.size = fmt.size if isinstance(fmt, GroupedFormat) else 0
        symbols = fmt.encode(weight)
        self.register_buffer("symbols", symbols.to(torch.uint8) if fmt.bits <= 8 else _halves(fmt, symbols))
        for place, table in enumerate(tables):
            self.register_buffer(f"table{place}", table.float().clone())
        self.tables = len(tables)

    @property
    def weight(self) -> Tensor:
        """Decoded where the graph needs it."""
        tables = [self.get_buffer(f"table{place}") for place in range(self.tables)]
        weight = symbolic(
            f"{DOMAIN}::{self.operator}",
            (self.symbols, *tables),
            {"bits": self.bits, "size": self.size},
            dtype=torch.float32,
            shape=self.symbols.shape,
            version=1,
        )
        return native_weight(self.layer, weight)

    def forward(self, input: Tensor) -> Tensor:
        return _call(self.layer, self.weight, input)


class _DeployedChain(AroundLayer):
    """The parts of a chain as they are deployed; the chain is there to be asked only."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.layer = chain
        self.parts = nn.Sequential(*(_deployed(copy.deepcopy(part)) for part in chain))

    def forward(self, input: Tensor) -> Tensor:
        outputs: Tensor = self.parts(input)
        return outputs


class _IntegerLayer(AroundLayer):
    """A layer with signed weight codes; between two roundings the runtime gives it an integer kernel.

    The bias stays a float in the file: the runtime turns it into integers when it loads. Integers in the file must
    match the scale of the input, and no longer do where the runtime merges two roundings that follow each other:
    the layer then runs on floats, at half the speed.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, module: StaticQuantized, integers: IntegerLayer) -> None:
        super().__init__()
        scale, bias = integers.scale, integers.bias
        self.layer = _without(module.layer, "weight")
        if bias is not None:
            # Rounded to what the runtime rounds it to anyway.
            self.layer._parameters["bias"] = nn.Parameter(bias * (module.input_range.scale * scale), False)
        self.register_buffer("codes", integers.codes.to(torch.int8))
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero", torch.zeros_like(scale, dtype=torch.int8))

    @property
    def weight(self) -> Tensor:
        """Decoded by the runtime's own operator, which is part of the kernel."""
        stored = (self.codes, self.scale, self.zero)
        weight: Tensor = symbolic("DequantizeLinear", stored, {"axis": 0}, dtype=torch.float32, shape=self.codes.shape)
        return weight

    def forward(self, input: Tensor) -> Tensor:
        if not isinstance(self.layer, nn.Linear) or input.dim() == 2:
            return _call(self.layer, self.weight, input)
        # The runtime has an integer kernel with a bias for matrices only.
        outputs = _call(self.layer, self.weight, input.flatten(0, -2))  # (rows, out)
        return outputs.view(*input.shape[:-1], outputs.shape[-1])


class _RoundedLayer(AroundLayer):
    """A layer between two roundings to integers."""

    def __init__(self, layer: nn.Module, before: ActivationRange, after: ActivationRange) -> None:
        super().__init__()
        self.before = _Rounding(before, cut_first=True)
        self.layer = layer
        self.after = _Rounding(after, cut_first=False)

    def forward(self, input: Tensor) -> Tensor:
        outputs: Tensor = self.after(self.layer(self.before(input)))
        return outputs


class _Rounding(nn.Module):
    """Rounds to 8 bits and back; fewer are 8 bits that are cut.

    The cut lies on the side that is turned away from the layer, which else would lose its integer kernel.
    """

    scale: Tensor
    zero: Tensor

    def __init__(self, span: ActivationRange, cut_first: bool) -> None:
        super().__init__()
        lowest, highest = ((code - span.zero_point) * span.scale for code in (0, span.largest_code))
        self.cut = None if span.bits == 8 else (lowest, highest)
        self.cut_first = cut_first
        self.register_buffer("scale", torch.tensor(span.scale, dtype=torch.float32))
        self.register_buffer("zero", torch.tensor(span.zero_point, dtype=torch.uint8))

    def forward(self, values: Tensor) -> Tensor:
        pair = (self.scale, self.zero)
        if self.cut and self.cut_first:
            values = values.clamp(*self.cut)
        codes = symbolic("QuantizeLinear", (values, *pair), dtype=torch.uint8, shape=values.shape)
        values = symbolic("DequantizeLinear", (codes, *pair), dtype=torch.float32, shape=values.shape)
        return values.clamp(*self.cut) if self.cut and not self.cut_first else values


def _coding(fmt: WeightFormat, weight: Tensor) -> tuple[str, tuple[Tensor, ...]]:
    """Returns the place-holder that decodes a format, and what it needs alongside the symbols."""
    if isinstance(fmt, UniformFormat):
        return "Scale", (fmt.zero_point, fmt.scale)
    if isinstance(fmt, GroupedFormat):
        return "ScaleGroups", (fmt.zero_point, fmt.scale)
    if isinstance(fmt, LevelFormat):
        return ("Levels", (fmt.levels, fmt.scale)) if fmt.bits <= 8 else ("Halves", (fmt.scale,))
    return "Look", (_table(fmt, weight),)


def _halves(fmt: WeightFormat, symbols: Tensor) -> Tensor:
    """Returns weights before scaling as fp16 or bf16, whichever holds all of them exactly."""
    assert isinstance(fmt, LevelFormat), f"the runtime cannot store symbols of {fmt.bits} bits"
    values = fmt.levels[symbols]
    half = values.half()
    return half if torch.equal(half.float(), values) else values.bfloat16()


def _table(fmt: WeightFormat, weight: Tensor) -> Tensor:
    """Returns the value of each symbol in each output channel, `(out, 2**bits)`."""
    probe = torch.zeros((weight.shape[0],) + (1,) * (weight.dim() - 1), dtype=torch.int64)
    return torch.cat([fmt.decode(probe + symbol).flatten(1) for symbol in range(2**fmt.bits)], 1)


def _without(layer: nn.Module, name: str) -> nn.Module:
    """Returns a copy of `layer` in which the parameter `name` is missing."""
    new = copy.copy(layer)
    new._parameters = {**layer._parameters, name: None}
    return new


def _call(layer: nn.Module, weight: Tensor, inputs: Tensor) -> Tensor:
    outputs: Tensor = torch.func.functional_call(layer, {"weight": weight}, (inputs,))
    return outputs
