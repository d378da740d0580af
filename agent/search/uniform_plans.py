"""Plans with one recipe for all layers: where every search starts, and the least that it must beat."""

import numpy as np

from plywise.env.arrays import Ints
from plywise.env.prices.prices import RECIPE_FEATURES, PriceTable

STRUCTURED = [RECIPE_FEATURES.index(name) for name in ("pruning_ratio", "rank_ratio", "sparsity")]
"""Features that are 0 where a recipe decides on number formats only."""

INTEGERS = " + activation_quantization"
"""How the written form of a recipe with 8-bit activations ends."""


def uniform_plans(table: PriceTable, formats_only: bool = False) -> Ints:
    """Returns all distinct plans `(P, L)` with one recipe on every layer that allows it.

    A layer that cannot take the recipe takes it without 8-bit activations, and stays as it is where it cannot take
    that either.

    Args:
        table: the menus.
        formats_only: only recipes of number formats, which are on the menu of every layer that can take them.
    """
    legal = [
        {recipe: slot for slot, recipe in reversed(list(enumerate(menu))) if allowed[slot]}
        for menu, allowed in zip(table.recipes, table.legal, strict=True)
    ]
    names = {name: (layer, slot) for layer, menu in reversed(list(enumerate(legal))) for name, slot in menu.items()}
    if formats_only:
        names = {name: place for name, place in names.items() if not table.recipe_features[place][STRUCTURED].any()}
    plans = np.array([[menu.get(name, menu.get(name.removesuffix(INTEGERS), 0)) for menu in legal] for name in names])
    _, first = np.unique(plans, axis=0, return_index=True)
    distinct: Ints = plans[np.sort(first)]
    return distinct
