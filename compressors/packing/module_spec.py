"""The shape of a module as plain data: its type from a short list and the settings of its constructor."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from plywise.compressors.errors import FileFormatError, ModelError
from plywise.compressors.modules.branches import Branches
from plywise.compressors.modules.channel_order import ChannelOrder
from plywise.compressors.modules.composition import Chain
from plywise.compressors.modules.grouped_linear import GroupedLinear
from plywise.compressors.modules.rectifier import Rectifier

Settings = Mapping[str, Any]

_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias")
_BATCH_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")

LEAVES: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "Conv1d": (nn.Conv1d, (*_CONVOLUTION, "padding_mode")),
    "Conv2d": (nn.Conv2d, (*_CONVOLUTION, "padding_mode")),
    "Conv3d": (nn.Conv3d, (*_CONVOLUTION, "padding_mode")),
    "ConvTranspose1d": (nn.ConvTranspose1d, (*_CONVOLUTION, "output_padding")),
    "ConvTranspose2d": (nn.ConvTranspose2d, (*_CONVOLUTION, "output_padding")),
    "ConvTranspose3d": (nn.ConvTranspose3d, (*_CONVOLUTION, "output_padding")),
    "Linear": (nn.Linear, ("in_features", "out_features", "bias")),
    "GroupedLinear": (GroupedLinear, ("in_features", "out_features", "groups", "bias")),
    "ChannelOrder": (ChannelOrder, ("order", "axis")),
    "Rectifier": (Rectifier, ("channels",)),
    "Embedding": (
        nn.Embedding,
        ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    ),
    "BatchNorm1d": (nn.BatchNorm1d, _BATCH_NORM),
    "BatchNorm2d": (nn.BatchNorm2d, _BATCH_NORM),
    "BatchNorm3d": (nn.BatchNorm3d, _BATCH_NORM),
    "LayerNorm": (nn.LayerNorm, ("normalized_shape", "eps", "elementwise_affine", "bias")),
    "GroupNorm": (nn.GroupNorm, ("num_groups", "num_channels", "eps", "affine")),
    "Identity": (nn.Identity, ()),
}
"""Every leaf that a file may hold, with the settings that rebuild it."""

CONTAINERS: dict[str, type[Chain | Branches]] = {"Sequential": Chain, "Branches": Branches}
"""What holds parts by name, besides `StaticQuantized`, which holds one."""


def container_name(module: nn.Module) -> str | None:
    """Returns under which name of CONTAINERS a module is written, or None for any other one."""
    if type(module) in (nn.Sequential, Chain):
        return "Sequential"
    return "Branches" if type(module) is Branches else None


_SIZES = ("kernel_size", "stride", "dilation", "normalized_shape")
_PADDINGS = ("padding", "output_padding")
_FLAGS = ("bias", "affine", "track_running_stats", "elementwise_affine", "scale_grad_by_freq", "sparse")
_NUMBERS = ("eps", "momentum", "max_norm", "norm_type")
_OPTIONAL = ("momentum", "max_norm", "padding_idx")
_WORDS = {
    "padding": ("same", "valid"),
    "padding_mode": ("zeros", "reflect", "replicate", "circular"),
}
_LARGEST = 2**31 - 1


def leaf_settings(module: nn.Module) -> dict[str, Any] | None:
    """Returns the constructor's settings of a leaf as JSON values, or None for any other module."""
    name = type(module).__name__
    if name not in LEAVES or type(module) is not LEAVES[name][0]:
        return None
    return {field: _plain(module, field) for field in LEAVES[name][1]}


def build_leaf(name: str, settings: Settings) -> nn.Module:
    """Builds a leaf on the meta device, so nothing is allocated yet.

    Args:
        name: a key of LEAVES.
        settings: from a file, hence not to be trusted.

    Raises:
        FileFormatError: on a type or a setting that is not allowed.
    """
    if name not in LEAVES:
        raise FileFormatError(f"the file holds a module of type {name!r:.60}; allowed are {', '.join(LEAVES)}")
    leaf, fields = LEAVES[name]
    if set(settings) != set(fields):
        raise FileFormatError(
            f"{name} needs the settings {', '.join(fields)}, but the file has {sorted(settings)!r:.200}"
        )
    for field, value in settings.items():
        if not _is_allowed(name, field, value):
            raise FileFormatError(f"{name}: {field}={value!r:.60} is not allowed; the file is damaged")
    values: dict[str, Any] = {
        field: tuple(value) if isinstance(value, list) else value for field, value in settings.items()
    }
    try:
        with torch.device("meta"):
            if leaf is nn.Embedding:
                # Its own initialisation would import a compiler on this device, which takes seconds.
                values["_weight"] = torch.empty(values["num_embeddings"], values["embedding_dim"])
            return leaf(**values)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, IndexError) as error:
        raise FileFormatError(f"the file describes a {name} that cannot be built: {error!s:.200}") from error


def is_count(value: Any, least: int) -> bool:
    """Returns whether a value from a file is a whole number from `least` to `2**31 - 1`."""
    return type(value) is int and least <= value <= _LARGEST


def unstorable(name: str, module: nn.Module) -> ModelError:
    """Builds the error for a module that is neither the original's nor of a type that a file may hold."""
    known = ", ".join([*LEAVES, *CONTAINERS, "StaticQuantized"])
    return ModelError(
        f"{name}: a {type(module).__name__} cannot replace another module in a packed file; allowed: {known}"
    )


def parameter_names(module: nn.Module) -> list[str]:
    """Returns the names of the module's own parameters; what was folded or pruned may hold them in any order."""
    first = ("weight", "bias")
    return [key for key in first if key in module._parameters] + [key for key in module._parameters if key not in first]


def tensor_names(module: nn.Module) -> list[str]:
    """Returns the names of the module's own parameters and lasting buffers, in the order of the file."""
    lasting = [key for key in module._buffers if key not in module._non_persistent_buffers_set]
    return [key for key in [*parameter_names(module), *lasting] if getattr(module, key) is not None]


def module_mark(name: str, module: nn.Module) -> str:
    """Returns a text that two modules share if and only if a file of one fits the other in this place."""
    own = module._parameters
    shapes = [(key, *tensor.shape) for key in parameter_names(module) if (tensor := own[key]) is not None]
    return f"{name} {type(module).__name__} {leaf_settings(module)} {shapes}"


def _plain(module: nn.Module, field: str) -> Any:
    value = getattr(module, field)
    if field == "bias":
        return value is not None
    return list(value) if isinstance(value, tuple) else value


def _is_allowed(leaf: str, field: str, value: Any) -> bool:
    if value is None:
        return field in _OPTIONAL
    if isinstance(value, str):
        return value in _WORDS.get(field, ())
    if field in _WORDS and field not in _PADDINGS:
        return False
    if field in _FLAGS:
        return isinstance(value, bool)
    if field in _NUMBERS:
        return type(value) in (int, float) and math.isfinite(value)
    if field == "order":
        return isinstance(value, list) and bool(value) and all(is_count(entry, 0) for entry in value)
    if field == "axis":
        return type(value) is int
    if field in _SIZES or field in _PADDINGS:
        least = int(field in _SIZES)
        lengths = (int(leaf[-2]),) if leaf.startswith("Conv") else range(1, 9)
        return isinstance(value, list) and len(value) in lengths and all(is_count(entry, least) for entry in value)
    return is_count(value, 0 if field == "padding_idx" else 1)
