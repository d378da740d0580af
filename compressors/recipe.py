"""A recipe: at most one technique per stage, for one layer."""

import ast
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from plywise.compressors.errors import ConfigurationError, UnsupportedLayerError
from plywise.compressors.statistics import LayerStatistics
from plywise.compressors.technique import Stage, Technique, make_technique

IDENTITY = "identity"
LONGEST = 2000
"""The characters of a written recipe, at most."""


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
        if len(text) > LONGEST:
            raise ConfigurationError(f"a text of {len(text)} characters is not a recipe; at most {LONGEST} are read")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConfigurationError(f"{text!r} is not a recipe; write for example 'low_rank(ratio=0.5)'") from error
        return cls(tuple(t for node in _terms(tree, text) if (t := _technique(node, text)) is not None))

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

    @cached_property
    def bits(self) -> int:
        """Bits of a stored weight; 32 where nothing decides it."""
        return next((t.bits for t in reversed(self.techniques) if t.bits is not None), 32)

    def unsupported(self, layer: nn.Module) -> str | None:
        """Returns why this recipe cannot be used on `layer`, or None where it can."""
        for technique in self.techniques:
            reason = technique.unsupported(layer)
            if reason is not None:
                return f"{technique.name}: {reason}"
        weights, sparsity = self.at(Stage.WEIGHTS), self.at(Stage.SPARSITY)
        if weights is not None and sparsity is not None and not weights.keeps_zeros:
            return (
                f"{weights.name}: it has no zero, so the zeros of {sparsity.name} would be lost; leave one of them out"
            )
        if self.at(Stage.ACTIVATIONS) is not None and not self.bits <= 7:
            return "activation_quantization: 8-bit kernels need weights of at most 7 bits in the same recipe"
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


def _terms(node: ast.expr, text: str) -> list[ast.expr]:
    terms: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        terms.append(node.right)
        node = node.left
    return [node, *reversed(terms)]


def _technique(node: ast.expr, text: str) -> Technique | None:
    if isinstance(node, ast.Name):
        return None if node.id == IDENTITY else make_technique(node.id, {})
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ConfigurationError(f"{text!r} is not a recipe; write for example 'low_rank(ratio=0.5)'")
    settings = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ConfigurationError(f"{text!r} is not a recipe: name each field, as in 'low_rank(ratio=0.5)'")
        if keyword.arg in settings:
            raise ConfigurationError(f"{text!r} gives {keyword.arg} twice; keep one of them")
        if isinstance(keyword.value, ast.Name):
            settings[keyword.arg] = keyword.value.id
            continue
        try:
            settings[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError as error:
            raise ConfigurationError(f"{text!r}: {keyword.arg} must be a plain number or a word") from error
    return make_technique(node.func.id, settings)
