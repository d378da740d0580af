"""How many weights each layer loses when one threshold serves all layers."""

from collections.abc import Mapping

import torch
from torch import nn

from plywise.compressors.errors import ConfigurationError
from plywise.compressors.modules.layers import WEIGHTED, weight_of
from plywise.compressors.recipes.technique import Recipe
from plywise.compressors.sparsity.magnitude_pruning import MagnitudePruning

MOST = 0.99
"""No layer loses more than this share of its weights."""


def global_threshold_plan(layers: Mapping[str, nn.Module], density: float) -> dict[str, Recipe]:
    """Returns for each layer with weights the `magnitude_pruning` that one threshold on the magnitudes gives it.

    Source: Joseph et al., Condensa, 2020, section 3 (Prune). Departure: within a layer, `magnitude_pruning` then
    takes the input's deviation into account as well.

    Args:
        layers: by name; those without weights are left out.
        density: share of all weights that stays, above 0 and at most 1.

    Raises:
        ConfigurationError: where the density is out of range.
    """
    if not 0.0 < density <= 1.0:
        raise ConfigurationError(
            f"density={density!r} must lie above 0 and at most at 1: the share of weights that stay"
        )
    sizes = {name: weight_of(layer).abs().flatten() for name, layer in layers.items() if isinstance(layer, WEIGHTED)}
    if not sizes:
        return {}
    every = torch.cat([size.double() for size in sizes.values()]).sort().values
    removed = round((1.0 - density) * every.numel())
    threshold = float(every[removed - 1]) if removed else -1.0
    shares = {name: float((size.double() <= threshold).double().mean()) for name, size in sizes.items()}
    return {name: Recipe((MagnitudePruning(min(MOST, share)),)) for name, share in shares.items()}
