"""Gradients rounded to a number format, as on hardware that trains with few bits.

Source: Zhao et al., Mayo, 2018 (overriders of gradients); Courbariaux et al., Training Deep Neural Networks with Low
Precision Multiplications, 2015, section 6 (which gradients).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.quantization.weight_quantizer import WeightQuantizer
from plywise.env.recovery.trainable import TrainableNetwork


class GradientRounding:
    """Rounds gradients of weights, of biases, and errors: gradients with respect to the outputs of layers.

    A format is found for each tensor anew, one scale for all of it.

    Args:
        quantizer: of the catalogue; nothing is rounded where None.
        kinds: which gradients, of `recovery_settings.GRADIENTS`. Whatever has one axis counts as a bias.
    """

    def __init__(self, quantizer: WeightQuantizer | None, kinds: tuple[str, ...]) -> None:
        self._quantizer = quantizer
        self._kinds = kinds if quantizer is not None else ()

    def round(self, gradient: Tensor) -> Tensor:
        """Returns a gradient in the format that the quantiser finds for it."""
        assert self._quantizer is not None
        row = gradient.reshape(1, -1)
        fmt = self._quantizer.format_of(row, torch.ones_like(row))
        return fmt.decode(fmt.encode(row)).view(gradient.shape)

    def parameters(self, parameters: Mapping[str, Tensor]) -> None:
        """Rounds the gradients of parameters in place."""
        for parameter in parameters.values():
            if ("weights" if parameter.dim() > 1 else "biases") in self._kinds and parameter.grad is not None:
                parameter.grad = self.round(parameter.grad)

    @contextmanager
    def errors(self, network: TrainableNetwork) -> Iterator[None]:
        """Rounds errors on their way back, inside the context."""

        def on_output(_: nn.Module, __: Any, outputs: Tensor) -> None:
            if outputs.requires_grad:
                outputs.register_hook(self.round)  # type: ignore[no-untyped-call]

        handles = network.on_outputs(on_output) if "errors" in self._kinds else []
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
