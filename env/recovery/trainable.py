"""A compressed network in a form that can be trained and keeps what compression promised."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from plywise.compressors.formats.weight_format import (
    attach_format,
    is_short,
    short,
    takes_gain,
    weight_format,
)
from plywise.compressors.modules.assembly import copied
from plywise.compressors.modules.layers import native_weight, weight_matrices, weight_of, with_weights
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe, Stage
from plywise.compressors.sparsity.dynamic_surgery import DynamicSurgery
from plywise.compressors.sparsity.pruning_mask import saliency
from plywise.compressors.statistics.leaves import each_leaf
from plywise.compressors.statistics.statistics import LayerStatistics
from plywise.env.bank.bank import Bank
from plywise.env.bank.repair import MOST_SCALED
from plywise.env.recovery.trained_leaf import Surgery, TrainedLeaf

GAIN = "gain of "
"""What the names of gains begin with; no module's name holds a blank."""


class TrainableNetwork:
    """A copy of a stitched network with dense weights alongside those that it runs on.

    Structures are trained as they are. Zeros that were there before rounding stay, number formats stay but for the
    values of their scales, and ranges of activations stay: their rounding lets gradients through inside the range.
    BatchNorms that could not be merged keep their statistics. Scales, biases and other floats that compression has
    rounded to bfloat16 run as values of bfloat16 in training too, for in float32 they would take twice the bytes.

    Attributes:
        model: the network; `realise` brings its weights up to date.
        parameters: what is trained, by name; weights in the form of `layers.weight_of`.
    """

    def __init__(self, bank: Bank, plan: Plan) -> None:
        """Stitches a plan; raises as `Bank.stitch` does."""
        self.model = copied(bank.stitch(plan).model).eval()
        self.parameters = {
            name: parameter.detach().clone().requires_grad_()
            for name, parameter in self.model.named_parameters()
            if parameter.is_floating_point()
        }
        short_ones = [name for name, parameter in self.parameters.items() if is_short(parameter.detach())]
        self._leaves: dict[str, TrainedLeaf] = {}
        for name in plan:
            for leaf, dense in _leaves(bank, plan, name, self.model):
                key = f"{leaf.name}.weight"
                self._leaves[key] = leaf
                self.parameters[key] = dense.clone().requires_grad_()
                if leaf.fmt is not None and takes_gain(leaf.fmt, len(dense)):
                    self.parameters[GAIN + key] = torch.zeros(len(dense), requires_grad=True)
        formatted = {key for key, leaf in self._leaves.items() if leaf.fmt is not None}
        self._short = [name for name in short_ones if name not in formatted]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the outputs, differentiable in the parameters."""
        return functional_call(self.model, self._weights(final=False), args, kwargs)

    def realise(self) -> nn.Module:
        """Writes the weights into the model, all of them in their formats, and returns it."""
        with torch.no_grad():
            for name, value in self._weights(final=True).items():
                self.model.get_parameter(name).copy_(value)
        for key, leaf in self._leaves.items():
            if leaf.fmt is not None:
                gain = self.parameters.get(GAIN + key)
                attach_format(self._module(leaf), leaf.scaled(None if gain is None else gain.detach()))
        return self.model

    def splice(self) -> None:
        """Lets the weights of layers under `dynamic_surgery` leave and come back."""
        for key, leaf in self._leaves.items():
            leaf.splice(self.parameters[key])

    def freeze(self, portion: float) -> dict[str, Tensor]:
        """Rounds and freezes a portion of the weights of each layer that has a format; returns which, by name."""
        for key, leaf in self._leaves.items():
            leaf.freeze(self.parameters[key], portion)
        return {key: leaf.frozen for key, leaf in self._leaves.items() if leaf.frozen is not None}

    def state(self) -> dict[str, Tensor]:
        """Returns a copy of everything that training changes, by name."""
        found = {f"parameter.{name}": value.detach().clone() for name, value in self.parameters.items()}
        for key, leaf in self._leaves.items():
            if leaf.mask is not None:
                found[f"mask.{key}"] = leaf.mask.clone()
            if leaf.frozen is not None:
                found[f"frozen.{key}"] = leaf.frozen.clone()
        return found

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Goes back to a state that `state` returned."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state[f"parameter.{name}"])
        for key, leaf in self._leaves.items():
            leaf.mask, leaf.frozen = state.get(f"mask.{key}"), state.get(f"frozen.{key}")

    def on_outputs(self, hook: Callable[[nn.Module, Any, Tensor], None]) -> list[Any]:
        """Registers a forward hook on every leaf with weights; returns the handles."""
        return [self._module(leaf).register_forward_hook(hook) for leaf in self._leaves.values()]

    def _weights(self, final: bool) -> dict[str, Tensor]:
        found = {name: value for name, value in self.parameters.items() if not name.startswith(GAIN)}
        found |= {name: _rounded(found[name]) for name in self._short}
        for key, leaf in self._leaves.items():
            weight = leaf.weight(found[key], self.parameters.get(GAIN + key), final)
            found[key] = native_weight(self._module(leaf), weight)
        return found

    def _module(self, leaf: TrainedLeaf) -> nn.Module:
        return self.model.get_submodule(leaf.name)


def _rounded(values: Tensor) -> Tensor:
    """Returns values of bfloat16 that let gradients through as if they were not rounded."""
    return short(values.detach()) + (values - values.detach())


def _leaves(bank: Bank, plan: Plan, name: str, model: nn.Module) -> Iterator[tuple[TrainedLeaf, Tensor]]:
    """Yields the leaves of a layer of the stitched `model` in the order in which they run, and their dense weights."""
    state, recipe = bank.state(plan), plan[name]
    until = [
        bank.entry(name, Recipe(tuple(t for t in recipe.techniques if t.stage <= stage)), state)
        for stage in (Stage.STRUCTURE, Stage.SPARSITY, Stage.WEIGHTS)
    ]
    loudness = _loudness(until[0], bank.statistics(name, state))
    technique = recipe.at(Stage.SPARSITY)
    parts = [_weighted(module, name) for module in (model.get_submodule(name), *until)]
    for loud, (path, leaf), *before in zip(loudness, *parts, strict=True):
        weight, (unpruned, unrounded, rounded) = weight_of(leaf), (weight_of(each) for _, each in before)
        # Zeros that rounding has made may move; those that were there before may not.
        mask = unrounded != 0
        surgery = Surgery(technique, loud) if isinstance(technique, DynamicSurgery) else None
        trained = TrainedLeaf(path, weight_format(leaf), None if bool(mask.all()) else mask, surgery)
        factor = _factor(rounded, weight)
        yield trained, trained.dense(weight, unrounded * factor, unpruned * factor)


def _factor(before: Tensor, after: Tensor) -> Tensor:
    """Returns what the repair of the network has multiplied each output channel by, `(out, 1, ...)`.

    The median over its weights, for some of them may have been refitted as well.
    """
    ratio = torch.where(before != 0, after / before, torch.nan).flatten(1).nanmedian(1).values
    return ratio.nan_to_num(nan=1.0).clamp(*MOST_SCALED).view(-1, *(1,) * (before.dim() - 1))


def _loudness(module: nn.Module, statistics: LayerStatistics) -> list[Tensor]:
    """Returns for each leaf what a magnitude is multiplied by to be a saliency, in the form of `weight_of`."""
    found: list[Tensor] = []

    def note(leaf: nn.Module, seen: LayerStatistics) -> nn.Module:
        loud = saliency(with_weights(leaf, torch.ones_like(weight_matrices(leaf))), seen)
        found.append(loud.reshape(weight_of(leaf).shape))
        return leaf

    each_leaf(module, statistics, note)
    return found


def _weighted(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """Returns the modules with weights of two or more axes, by dotted name."""
    return [
        (f"{name}.{path}".rstrip("."), part)
        for path, part in module.named_modules()
        if (weight := part._parameters.get("weight")) is not None and weight.dim() > 1
    ]
