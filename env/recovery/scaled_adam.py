"""Adam whose steps are in a unit of each parameter's own."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

DECAYS = (0.9, 0.999)
LEAST = 1e-8


class ScaledAdam(Optimizer):
    """Takes a step of Adam, which does not know how large parameters are, times the size of each.

    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015, algorithm 1, with its usual constants.
    """

    def __init__(self, parameters: Iterable[tuple[Tensor, Tensor]], learning_rate: float) -> None:
        """Prepares; nothing moves yet.

        Args:
            parameters: each with its size, which broadcasts to it.
            learning_rate: of a parameter of size 1.
        """
        self._sizes = dict(parameters)
        super().__init__(list(self._sizes), {"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient, in place.

        Args:
            closure: of no use here, only there for its base.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"])

    def _move(self, parameter: Tensor, gradient: Tensor, rate: float) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter)}
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        first, second = (1.0 - decay ** float(state["step"]) for decay in DECAYS)
        state["exp_avg"].lerp_(gradient, 1.0 - DECAYS[0])
        state["exp_avg_sq"].mul_(DECAYS[1]).addcmul_(gradient, gradient, value=1.0 - DECAYS[1])
        root = math.sqrt(second)
        pace = state["exp_avg_sq"].sqrt().add_(LEAST * root).div_(self._sizes[parameter])
        parameter.addcdiv_(state["exp_avg"], pace, value=-rate * root / first)
