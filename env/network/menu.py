"""The recipes that a layer is offered: the stages combined, cut by legality and then by dominance."""

from collections.abc import Collection, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from plywise.compressors.errors import ConfigurationError
from plywise.compressors.recipes.technique import Recipe, Stage, Technique, techniques
from plywise.env.network.network import Layer

RESTRUCTURED_WEIGHTS = (
    "uniform_quantization(bits=7)",
    "uniform_quantization(bits=4, scale=minmax)",
    "uniform_quantization(bits=3, scale=minmax)",
)
"""What restructured layers are combined with; 7 bits serve 8-bit kernels as well."""


def catalogue() -> tuple[Recipe, ...]:
    """Returns every recipe that the search considers, `identity` first; some devices run fewer."""
    weights = [f"uniform_quantization(bits={bits})" for bits in (8, 7, 6, 4, 3)]
    # Between the outermost weights a grid of few levels is coarser and most symbols are alike: fewer bytes.
    weights += [f"uniform_quantization(bits={bits}, scale=minmax)" for bits in (5, 4, 3)]
    weights += [f"step_quantization(step={step})" for step in (0.75, 1.0, 1.25, 1.5)]
    sparse = [f"magnitude_pruning(sparsity={sparsity}) + {RESTRUCTURED_WEIGHTS[-1]}" for sparsity in (0.5, 0.7)]
    structures = [f"filter_pruning(ratio={ratio})" for ratio in (0.25, 0.5, 0.75)]
    structures += [f"low_rank(ratio={ratio})" for ratio in (0.6, 0.4, 0.25)]
    structures += ["low_rank(ratio=0.4, sides=cp)", "depthwise_separable(filters=1)"]
    plain = ["identity", *weights, *sparse]
    for structure in structures:
        plain += [structure, *(f"{structure} + {weight}" for weight in RESTRUCTURED_WEIGHTS)]
    recipes = [Recipe.parse(text) for text in plain]
    recipes += [with_integers(recipe) for recipe in recipes if recipe.bits <= 8]
    recipes += [recipe for _, kind in sorted(techniques().items()) for recipe in _declared(kind)]
    return tuple(dict.fromkeys(recipes))


def is_uniform(recipe: Recipe) -> bool:
    """Returns whether a recipe decides on number formats only, so that the same one suits all layers of a network."""
    return all(technique.stage in (Stage.WEIGHTS, Stage.ACTIVATIONS) for technique in recipe.techniques)


def with_integers(recipe: Recipe) -> Recipe:
    """Returns the recipe with 8-bit activations added."""
    return Recipe.parse(f"{recipe} + activation_quantization")


def legal_recipes(layer: Layer, module: nn.Module) -> tuple[Recipe, ...]:
    """Returns the recipes of the catalogue that a layer can take, `identity` first."""
    found = []
    for recipe in catalogue():
        prunes = any(technique.name == "filter_pruning" for technique in recipe.techniques)
        if (layer.unsupported(recipe) or recipe.unsupported(module)) is None and not (prunes and not layer.leads):
            found.append(recipe)
    return tuple(found)


def undominated(prices: NDArray[np.float64], classes: Sequence[Hashable], always: Collection[int] = (0,)) -> list[int]:
    """Returns the recipes that may be part of the best plan for some demand, in their order.

    A recipe is dominated if another of the same class is nowhere worse and somewhere better.

    Args:
        prices: `(recipes, prices)`, lower is better.
        classes: for each recipe what it does to other layers; only equals are compared.
        always: places that stay in any case.
    """
    codes = {each: code for code, each in enumerate(dict.fromkeys(classes))}
    kind = np.array([codes[each] for each in classes])
    no_worse = (prices[:, None] <= prices[None]).all(-1) & (kind[:, None] == kind[None])
    better = no_worse & (prices[:, None] < prices[None]).any(-1)
    twin = no_worse & no_worse.T & (np.arange(len(prices))[:, None] < np.arange(len(prices))[None])
    alive = ~(better | twin).any(0)
    alive[list(always)] = True
    return np.flatnonzero(alive).tolist()


def _declared(kind: type[Technique]) -> list[Recipe]:
    try:
        return [Recipe.parse(text) for text in kind.in_search]
    except ConfigurationError as error:
        raise ConfigurationError(f"in_search of technique {kind.name!r} ({kind.__module__}): {error}") from error
