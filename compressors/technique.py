"""What one way to compress a layer must declare, and the registry of all of them.

Adding a technique is adding one file to this folder: a frozen dataclass below `Technique`. The
registry, the search space, YAML, the listing and the contract tests follow from its declaration.
"""

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import nn

from plywise.compressors.entry_points import load_entry_points
from plywise.compressors.errors import ConfigurationError, unknown_name
from plywise.compressors.statistics import LayerStatistics

if TYPE_CHECKING:
    from plywise.compressors.recipe import Recipe

TECHNIQUES: dict[str, type["Technique"]] = {}
"""Techniques imported so far; `techniques()` has all."""


class Stage(IntEnum):
    """Where in a recipe a technique acts; a recipe has at most one technique of each stage."""

    STRUCTURE = 0
    SPARSITY = 1
    WEIGHTS = 2
    ACTIVATIONS = 3


def choice(
    default: Any, *, grid: tuple[Any, ...], low: float | None = None, high: float | None = None, help: str = ""
) -> Any:
    """Declares a hyperparameter.

    Args:
        default: value where none is given.
        grid: values that the search tries.
        low, high: bounds of allowed numbers, inclusive; a text must be on the grid.
        help: one line for the listing.
    """
    return dataclasses.field(default=default, metadata={"grid": grid, "low": low, "high": high, "help": help})


@dataclass(frozen=True)
class Technique(ABC):
    """One way to compress one layer; its fields are its hyperparameters.

    Class attributes:
        name: what users write in plans, snake_case.
        stage: where in a recipe it acts.
        summary: what it costs and saves, one line for the listing.
        source: paper, year, section.
        keeps_zeros: whether weights that are zero stay zero; asked of the WEIGHTS stage.
        in_search: recipes with it, as written in plans, that the search tries besides those that `env/menu.py` lists.
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
            taken = TECHNIQUES.setdefault(cls.name, cls)
            if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ConfigurationError(
                    f"technique {cls.name!r} of {cls.__module__} has the name of one of {taken.__module__}; rename it"
                )
            TECHNIQUES[cls.name] = cls

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_value(self.name, field, getattr(self, field.name))

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
        from plywise.compressors.recipe import Recipe  # late: recipes are made of techniques

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


def techniques() -> Mapping[str, type[Technique]]:
    """Returns all techniques by name, those of other installed packages among them.

    Raises:
        ConfigurationError: where one of theirs cannot be used.
    """
    load_entry_points(Technique)
    return TECHNIQUES


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


def _check_value(name: str, field: "dataclasses.Field[Any]", value: Any) -> None:
    grid, low, high = field.metadata["grid"], field.metadata["low"], field.metadata["high"]
    if isinstance(field.default, str | bool):
        if value not in grid:
            raise ConfigurationError(f"{name}: {field.name}={value!r} is not allowed; choose one of {grid}")
        return
    if isinstance(value, bool) or not isinstance(value, int if isinstance(field.default, int) else int | float):
        kind = "a whole number" if isinstance(field.default, int) else "a number"
        raise ConfigurationError(f"{name}: {field.name}={value!r} must be {kind}, for example {field.default}")
    if (low is not None and value < low) or (high is not None and value > high) or value != value:
        raise ConfigurationError(f"{name}: {field.name}={value!r} must lie between {low} and {high}")
