"""How the weights of a layer are stored: symbols of a few bits and what turns them into numbers.

A quantised layer stays an ordinary torch layer that holds the decoded numbers, so it runs anywhere;
its format, attached to it, recovers the symbols exactly when it is packed or exported.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plywise.compressors.discovery import import_modules
from plywise.compressors.errors import FileFormatError
from plywise.compressors.modules.layers import set_weight

LEAST_SCALE = 1e-30
"""Of integers: a channel whose weights are all zero may have none."""

FORMATS: dict[str, type["WeightFormat"]] = {}
"""Formats imported so far; `weight_formats()` has all."""


@dataclass(frozen=True, eq=False)
class WeightFormat(ABC):
    """A finite alphabet of weight values; `decode(encode(w)) == w` bit for bit on a decoded tensor.

    Weights are in the form of `layers.weight_of`, output channels first.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if hasattr(cls, "name"):
            FORMATS[cls.name] = cls

    @property
    @abstractmethod
    def bits(self) -> int:
        """Bits of one stored symbol; symbols lie in `[0, 2**bits)`."""

    @abstractmethod
    def encode(self, weight: Tensor) -> Tensor:
        """Returns the symbols of the nearest values, int64, in the shape of `weight`."""

    @abstractmethod
    def decode(self, symbols: Tensor) -> Tensor:
        """Returns the float32 values of `symbols`, in their shape."""

    @abstractmethod
    def scaled(self, factor: Tensor) -> "WeightFormat":
        """Returns the format whose values are multiplied by `factor` `(out,)` along dimension 0."""

    @abstractmethod
    def settings(self) -> Mapping[str, int | float | str | bool]:
        """Plain values that, with `tensors`, rebuild the format."""

    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """Tensors stored alongside the symbols (scales, zero points, codebooks)."""

    @classmethod
    @abstractmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "WeightFormat":
        """Rebuilds the format; raises FileFormatError on anything out of range."""

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns decoded weights as signed 8-bit codes (float32) and a scale `(out,)` of each output channel.

        None where they are no such numbers, and no integer kernel can take them.
        """
        return None

    def short(self) -> "WeightFormat":
        """Returns the format with scales rounded to bfloat16, which a file holds in half the bytes or less."""
        rounded = {name: short(tensor) if name == "scale" else tensor for name, tensor in self.tensors().items()}
        return self.restore(self.settings(), rounded)

    @property
    def is_short(self) -> bool:
        """Whether the scales are values of bfloat16 already."""
        return is_short(self.tensors()["scale"])


@dataclass(frozen=True, eq=False)
class AffineFormat(WeightFormat):
    """`value = scale * (symbol - zero_point)`; subclasses say which weights share a scale.

    Attributes:
        width: bits of a symbol, 1 to 8.
        scale: float32, positive.
        zero_point: like `scale`, whole numbers in `[0, 2**width)`; `2**(width-1)` where symmetric.
    """

    width: int
    scale: Tensor
    zero_point: Tensor

    @property
    def bits(self) -> int:
        """The width."""
        return self.width

    @property
    def symmetric(self) -> bool:
        """Whether every zero point sits in the middle of the alphabet."""
        return bool((self.zero_point == 2 ** (self.width - 1)).all())

    def encode(self, weight: Tensor) -> Tensor:
        """Rounds to the nearest symbol, `(out, ...)` int64."""
        scale, zero = self._broadcast(weight)
        return (weight.float() / scale + zero).round().clamp(0, 2**self.width - 1).long()

    def decode(self, symbols: Tensor) -> Tensor:
        """Scales the symbols, `(out, ...)` float32."""
        scale, zero = self._broadcast(symbols)
        return (symbols.float() - zero) * scale

    def tensors(self) -> Mapping[str, Tensor]:
        """The scales, and the zero points unless they are all in the middle."""
        return {"scale": self.scale} if self.symmetric else {"scale": self.scale, "zero_point": self.zero_point}

    @abstractmethod
    def _broadcast(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns scale and zero point in a shape that fits the weights `like`."""


@dataclass(frozen=True, eq=False)
class UniformFormat(AffineFormat):
    """One scale for each output channel or one for all: `scale` is `(out,)` or `(1,)`."""

    name: ClassVar[str] = "uniform"

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns symbols less their zero point, where these fit 8 bits, and the scales."""
        if float(self.zero_point.max()) > 128 or float(self.zero_point.min()) < 2**self.width - 128:
            return None
        scale = self.scale.float().clamp(min=LEAST_SCALE).expand(len(weight))
        return (weight / scale.view(-1, *(1,) * (weight.dim() - 1))).round_(), scale

    def scaled(self, factor: Tensor) -> "UniformFormat":
        """Multiplies the scales."""
        return UniformFormat(self.width, self.scale * factor, self.zero_point)

    def rows(self, index: Tensor) -> "UniformFormat":
        """Returns the format of the selected output channels."""
        return UniformFormat(self.width, self.scale[index], self.zero_point[index])

    def settings(self) -> Mapping[str, int | float | str | bool]:
        """Width, and whether the zero points need not be stored."""
        return {"width": self.width, "symmetric": self.symmetric}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "UniformFormat":
        """Checks the width and rebuilds the format."""
        width = settings.get("width")
        if not isinstance(width, int) or not 1 <= width <= 8 or "scale" not in tensors:
            raise FileFormatError(f"uniform weight format with width {width!r}: 1 to 8 bits and a scale are needed")
        scale = positive(tensors["scale"].float())
        middle = torch.full_like(scale, 2 ** (width - 1))
        return cls(width, scale, tensors.get("zero_point", middle).float())

    def _broadcast(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1,) + (1,) * (like.dim() - 1)
        return self.scale.view(shape), self.zero_point.view(shape)


def weight_formats() -> Mapping[str, type[WeightFormat]]:
    """Returns all formats by name."""
    import_modules("plywise.compressors.formats")
    return FORMATS


def positive(scale: Tensor) -> Tensor:
    """Returns the scales of a stored format that divides by them; raises FileFormatError where one is not above 0."""
    if not bool((scale > 0).all()):
        least = float(scale.min())
        raise FileFormatError(f"a weight format has the scale {least:g}; it must be above 0: the file is damaged")
    return scale


def short(values: Tensor) -> Tensor:
    """Returns float32 values rounded to the eight significant bits of bfloat16."""
    return values.bfloat16().float()


def is_short(values: Tensor) -> bool:
    """Returns whether `short` changes none of the float32 values, so that a file holds them in half the bytes."""
    return torch.equal(short(values), values)


def takes_gain(fmt: WeightFormat, channels: int) -> bool:
    """Returns whether a scale of each output channel costs a format no bytes, for it has them already."""
    with_gain = fmt.scaled(torch.ones(channels)).tensors()
    return all(with_gain[key].shape == tensor.shape for key, tensor in fmt.tensors().items())


def weight_format(layer: nn.Module) -> WeightFormat | None:
    """Returns the format of a layer's weights, or None where they are plain floats."""
    found = getattr(layer, "weight_format", None)
    return found if isinstance(found, WeightFormat) else None


def set_weight_format(layer: nn.Module, fmt: WeightFormat, weight: Tensor) -> None:
    """Rounds `weight` (as `weight_of` gives it) into `fmt`, stores it in `layer` and remembers the format there."""
    decoded = fmt.decode(fmt.encode(weight))
    set_weight(layer, decoded.to(weight.dtype))
    attach_format(layer, fmt)


def attach_format(layer: nn.Module, fmt: WeightFormat) -> None:
    """Remembers the format of a layer's weights, which must be values of it already."""
    object.__setattr__(layer, "weight_format", fmt)
