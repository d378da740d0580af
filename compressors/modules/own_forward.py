"""A layer of the user's own as its forward around the plain layer of torch that it runs, which can be compressed."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from plywise.compressors.modules.assembly import AroundLayer, answered, widths
from plywise.compressors.modules.layers import TRANSPOSED, WEIGHTED

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
KERNELS: Mapping[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    F.embedding: ("input", "weight"),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _CONVOLUTION),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _TRANSPOSED),
}
"""What plain layers call, with the names of the arguments in order."""

INSIDE = "layer"
"""Name of the plain layer in an `OwnForward`."""


def is_own(module: nn.Module) -> bool:
    """Returns whether a module is a layer of the user's own: its class is derived from that of a plain layer."""
    return isinstance(module, WEIGHTED) and type(module) not in WEIGHTED


class OwnForward(AroundLayer):
    """Runs the forward of a user's layer, with a module in the place of the kernel that it calls.

    The forward finds the settings, parts and further parameters of the user's module. In the place of weight and bias
    it finds tensors of their shapes that are no numbers: it may ask for what they are like and hand them to the kernel.

    Attributes:
        kind: class whose forward it is.
        settings: attributes of the user's module besides tensors and parts.
        layer: the plain layer, or what it has become. The user's other parts, parameters and buffers keep their names.
    """

    def __init__(self, original: nn.Module) -> None:
        """Takes over a user's layer without its weight and bias; `layer` is still to be given."""
        super().__init__()
        self.kind = type(original)
        self.settings = {name: value for name, value in vars(original).items() if name not in vars(nn.Module())}
        self._dtype, self._shape = original.get_parameter("weight").dtype, original.get_parameter("weight").shape
        self._biased = original._parameters.get("bias") is not None
        self._parameters = {name: p for name, p in original._parameters.items() if name not in ("weight", "bias")}
        self._buffers, self._modules = dict(original._buffers), dict(original._modules)
        self._non_persistent_buffers_set = set(original._non_persistent_buffers_set)
        self.training = original.training

    def __getattr__(self, name: str) -> Any:
        """Answers for the user's layer, with the channels that are left."""
        settings = self.__dict__.get("settings", {})
        return answered(self.layer, name, settings[name]) if name in settings else super().__getattr__(name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes and returns what the user's forward does."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        nothing = torch.full((), torch.nan, dtype=self._dtype, device=tensors[0].device if tensors else None)
        weight, outputs = nothing.expand(self._left()), widths(self.layer)[1]
        bias = nothing.expand(outputs) if self._biased and outputs is not None else None
        user = self.kind.__new__(self.kind)
        answers = {name: getattr(self, name) for name in self.settings}
        user.__dict__.update({**self.__dict__, **answers, "weight": weight, "bias": bias})
        with _Redirected(weight, self.layer):
            return self.kind.forward(user, *args, **kwargs)

    def _left(self) -> list[int]:
        """Returns the shape of the weight for the channels that are left."""
        (first, second, *kernel), (reads, makes) = self._shape, widths(self.layer)
        before, behind = (reads, makes) if issubclass(self.kind, TRANSPOSED) else (makes, reads)
        if issubclass(self.kind, nn.Embedding):
            before, behind = first, makes
        if self.settings.get("groups", 1) > 1:
            behind = second
        return [before or first, behind or second, *kernel]


def kernel_call(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the arguments of a plain layer's kernel by name, or None for any other function."""
    names = KERNELS.get(function)
    return None if names is None else {**dict(zip(names, args, strict=False)), **kwargs}


class _Redirected(TorchFunctionMode):
    """Calls `layer` where a kernel is called with a certain weight."""

    def __init__(self, weight: Tensor, layer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = weight
        self.layer = layer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = kernel_call(func, args, kwargs or {})
        if found is not None and found["weight"] is self.weight:
            return self.layer(found["input"])
        return func(*args, **(kwargs or {}))
