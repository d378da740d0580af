"""What one way to compress a layer must declare, and recipes: stacks of at most one technique per stage.

Adding a technique is adding one file to `structure`, `sparsity` or `quantization`: a frozen dataclass below
`Technique`. The registry, the search space, YAML, the listing and the contract tests follow from its declaration.
Techniques add up to recipes with `+`, and recipes are made of techniques, so both stand here.
"""

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, ClassVar, Self

from torch import nn

from plywise.compressors.errors import ConfigurationError, UnsupportedLayerError, unknown_name
from plywise.compressors.modules.layers import is_recurrent
from plywise.compressors.recipes.hyperparameter import check_value
from plywise.compressors.recipes.notation import IDENTITY, parse_recipe
from plywise.compressors.recipes.registry import register, registered
from plywise.compressors.statistics.statistics import LayerStatistics


class Stage(IntEnum):
    """Where in a recipe a technique acts; a recipe has at most one technique of each stage."""

    STRUCTURE = 0
    SPARSITY = 1
    WEIGHTS = 2
    ACTIVATIONS = 3


@dataclass(frozen=True)
class Technique(ABC):
    """One way to compress one layer; its fields are its hyperparameters.

    Class attributes:
        name: what users write in plans, snake_case.
        stage: where in a recipe it acts.
        summary: what it costs and saves, one line for the listing.
        source: paper, year, section.
        keeps_zeros: whether weights that are zero stay zero; asked of the WEIGHTS stage.
        in_search: recipes with it, as written in plans, that the search tries besides those of `env/network/menu.py`.
    """

    name: ClassVar[str]
    stage: ClassVar[Stage]
    summary: ClassVar[str]
    source: ClassVar[str]
    keeps_zeros: ClassVar[bool] = True
    in_search: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "name"):  # what several techniques share has none
            register(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_value(self.name, field, getattr(self, field.name))

    @abstractmethod
    def unsupported(self, layer: nn.Module) -> str | None:
        """Returns why this technique cannot be used on `layer`, or None where it can."""

    @abstractmethod
    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Returns a new, compressed module; `layer` is left untouched.

        Args:
            layer: an ordinary torch layer that `unsupported` accepts.
            statistics: what calibration saw at this layer.
        """

    def outline(self, layer: nn.Module) -> nn.Module:
        """Returns what `compress` makes of `layer`, with the same shapes but without weights; prices are read off it.

        For techniques of the stage STRUCTURE that put something else in the layer's place. Channels that are removed
        are counted where the layers that read them are known. Costs next to nothing and never fails.

        Args:
            layer: one that `unsupported` accepts, perhaps with fewer channels since, perhaps on the meta device.
        """
        return layer

    def on_cut(self, whole: nn.Module, cut: nn.Module) -> "Technique":
        """Returns the technique as it acts on a layer that has lost channels to its neighbours' recipes.

        Args:
            whole: the layer as trained.
            cut: the same with fewer channels, perhaps on the meta device.
        """
        return self

    @property
    def bits(self) -> int | None:
        """Bits of a stored weight, or None where this technique does not decide it."""
        return None

    @classmethod
    def grid(cls) -> Iterator[Self]:
        """Yields the technique at every point of its hyperparameters' grid."""
        fields = dataclasses.fields(cls)
        for values in itertools.product(*(field.metadata["grid"] for field in fields)):
            yield cls(**{field.name: value for field, value in zip(fields, values, strict=True)})

    def settings(self) -> Mapping[str, Any]:
        """Returns the hyperparameters by name."""
        return dataclasses.asdict(self)

    def __add__(self, other: "Recipe | Technique") -> "Recipe":
        """Returns the recipe of both, whichever is written first: the stages fix the order."""
        return Recipe((self,)) + other

    def __str__(self) -> str:
        values = self.settings()
        first = next(iter(values), None)
        shown = {
            field.name: values[field.name]
            for field in dataclasses.fields(self)
            if values[field.name] != field.default
            or (field.name == first and not isinstance(values[field.name], str | bool))
        }
        inside = ", ".join(f"{name}={value}" for name, value in shown.items())
        return f"{self.name}({inside})" if inside else self.name


@dataclass(frozen=True)
class Recipe:
    """An ordered stack of techniques; the empty stack is `identity`, which changes nothing.

    Written as `filter_pruning(ratio=0.5) + uniform_quantization(bits=4)`.
    """

    techniques: tuple[Technique, ...] = ()

    def __post_init__(self) -> None:
        stages = [technique.stage for technique in self.techniques]
        for stage in set(stages):
            if stages.count(stage) > 1:
                names = [t.name for t in self.techniques if t.stage == stage]
                raise ConfigurationError(f"{' and '.join(names)} are both of stage {stage.name}; keep one of them")
        # The stages fix the order, so how a recipe was written does not matter.
        object.__setattr__(self, "techniques", tuple(sorted(self.techniques, key=lambda t: t.stage)))

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """Reads the written form; raises ConfigurationError on anything else. Executes nothing."""
        return cls(tuple(make_technique(name, settings) for name, settings in parse_recipe(text)))

    @classmethod
    def of(cls, given: "Recipe | Technique | str") -> "Recipe":
        """Returns a recipe from any of the forms that people give it in."""
        if isinstance(given, Recipe):
            return given
        return cls((given,)) if isinstance(given, Technique) else cls.parse(given)

    def __add__(self, other: "Recipe | Technique") -> "Recipe":
        """Returns the recipe with another's techniques; the stages fix the order."""
        if not isinstance(other, Recipe | Technique):
            return NotImplemented
        return Recipe((*self.techniques, *Recipe.of(other).techniques))

    def at(self, stage: Stage) -> Technique | None:
        """Returns the technique of a stage, or None."""
        return next((t for t in self.techniques if t.stage == stage), None)

    def without(self, stage: Stage) -> "Recipe":
        """Returns the recipe with one stage left out."""
        return Recipe(tuple(t for t in self.techniques if t.stage != stage))

    def with_techniques(self, others: "Recipe") -> "Recipe":
        """Returns the recipe with another's techniques, which take the place of its own of the same stages."""
        return Recipe((*(t for t in self.techniques if others.at(t.stage) is None), *others.techniques))

    @cached_property
    def bits(self) -> int:
        """Bits of a stored weight; 32 where nothing decides it."""
        return next((t.bits for t in reversed(self.techniques) if t.bits is not None), 32)

    def unsupported(self, layer: nn.Module) -> str | None:
        """Returns why this recipe cannot be used on `layer`, or None where it can."""
        for technique in self.techniques:
            reason = technique.unsupported(layer) or _unsupported_in_recurrence(technique, layer)
            if reason is not None:
                return f"{technique.name}: {reason}"
        weights, sparsity = self.at(Stage.WEIGHTS), self.at(Stage.SPARSITY)
        if weights is not None and sparsity is not None and not weights.keeps_zeros:
            return (
                f"{weights.name}: it has no zero, so the zeros of {sparsity.name} would be lost; leave one of them out"
            )
        if self.at(Stage.ACTIVATIONS) is not None and not self.bits <= 8:
            return "activation_quantization: 8-bit kernels need weights of at most 8 bits in the same recipe"
        return None

    def compress(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Applies the stack to a layer and returns a new module.

        Raises:
            UnsupportedLayerError: with the reason, where a technique refuses the layer.
        """
        reason = self.unsupported(layer)
        if reason is not None:
            raise UnsupportedLayerError(f"{self} cannot compress {layer}: {reason}")
        return self.apply(layer, statistics)

    def apply(self, layer: nn.Module, statistics: LayerStatistics) -> nn.Module:
        """Does what `compress` does on a layer already known to be supported, perhaps with fewer channels since."""
        module = layer
        for technique in self.techniques:
            module = technique.compress(module, statistics)
        return module

    def __str__(self) -> str:
        return " + ".join(map(str, self.techniques)) or IDENTITY


def _unsupported_in_recurrence(technique: Technique, layer: nn.Module) -> str | None:
    """Returns why a matrix of a recurrence cannot take a technique that its kind of layer can, or None."""
    if not is_recurrent(layer):
        return None
    if technique.stage is Stage.ACTIVATIONS:
        return "the runtime's kernels for recurrences compute on floats"
    if technique.stage is Stage.STRUCTURE:
        parts = [part for part in technique.outline(layer).modules() if not isinstance(part, nn.Sequential)]
        if any(type(part) is not nn.Linear for part in parts):
            return "a recurrence takes one matrix, or a product of matrices"
    return None


def techniques() -> Mapping[str, type[Technique]]:
    """Returns all techniques by name, those of other installed packages among them.

    Raises:
        ConfigurationError: where one of theirs cannot be used.
    """
    return registered(Technique)


def make_technique(name: str, settings: Mapping[str, Any]) -> Technique:
    """Builds a technique by name; raises ConfigurationError on unknown names, fields and values."""
    if name not in techniques():
        raise unknown_name("technique", name, techniques())
    cls = techniques()[name]
    known = {field.name for field in dataclasses.fields(cls)}
    for key in settings:
        if key not in known:
            raise unknown_name(f"field of {name}", key, known)
    return cls(**settings)
