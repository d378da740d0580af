"""The price list of one network: what every (layer, recipe) costs and loses, as plain arrays.

Everything that learns or searches on estimates reads this table and nothing else, so the walk, the
batched environment and the search methods run without torch and at millions of look-ups a second.
"""

from dataclasses import dataclass
from functools import cached_property

from plywise.env.arrays import Bools, Floats, Ints

METRICS = ("storage", "latency", "energy")
"""Names of the costs, in the order of the arrays' metric axis: bytes, milliseconds, millijoules."""

RECIPE_FEATURES = (
    "is_identity",
    "pruning_ratio",
    "rank_ratio",
    "sparsity",
    "weight_bits",
    "activation_bits",
    "log_output_error",
)
"""What a row of `recipe_features` holds: shares removed in [0, 1] (`rank_ratio`: of the macs, by any structure that
keeps the channels), bits / 32, log10 of the relative output error / 5."""

LAYER_FEATURES = (
    "is_linear",
    "is_depthwise",
    "is_pointwise",
    "share_of_macs",
    "share_of_storage",
    "log_out_channels",
    "log_in_features",
    "depth",
)
"""What a row of `layer_features` holds: flags, shares of the network, log2 / 12, position / layers."""


@dataclass(frozen=True)
class Baseline:
    """The original on the validation samples.

    Attributes:
        accuracy: points: percent, or of another metric as many as make its value; below 0 where that is.
        chance: that of guessing, or its own where that is less.
        samples: that it was counted on.
    """

    accuracy: float
    chance: float
    samples: int

    @property
    def room(self) -> float:
        """Points between the original and guessing."""
        return self.accuracy - self.chance


@dataclass(frozen=True)
class PriceTable:
    """Prices of one network on one device. L layers, K recipe slots, Q keep levels, G channel groups, M metrics.

    A layer's cost depends on how many of its input channels upstream choices left (`in_level`) and, where its
    output channels are shared with an earlier layer, on what that one left (`out_level`).

    Attributes:
        network: its name.
        layers: L dotted names, in execution order: the order of the walk.
        recipes: for each layer the written recipes of its slots; slot 0 is always `identity`.
        legal: `(L, K)`, False on padding.
        cost: `(M, L, K, Q, Q)` at [metric, layer, slot, in_level, out_level]. For a slot that prunes, the cost
            already includes its own cut (`out_level` is then ignored: all entries along it are equal).
        drop: `(L, K)` estimated drop of the metric, points, of this recipe alone with repair; drops of a
            plan add up, and then saturate (`plan_drop`). Never negative.
        output_error: `(L, K)` relative squared error of the layer's output, before the network's repair.
        keep_levels: `(Q,)` kept share of channels, 1.0 first, descending.
        in_share: `(L, G)` share of the layer's input channels that comes from each channel group (rows may sum
            to less than 1: the rest is never pruned).
        out_group: `(L,)` the group of the layer's output channels, -1 for none.
        leads: `(L,)` whether the layer decides for its group (the first of it in the walk). Only leaders have
            slots with a keep level other than 0.
        recipe_level: `(L, K)` index into `keep_levels` that the slot sets for the layer's group.
        integers: `(L, K)` whether the slot computes on integers, False on padding.
        nearest: `(L,)` the last earlier layer whose outputs reach the layer without passing through another one, -1 for
            none.
        border: `(L,)` milliseconds that the layer takes more where it computes on integers and `nearest` on floats (the
            network's input is one), or the reverse.
        recipe_features: `(L, K, len(RECIPE_FEATURES))`.
        layer_features: `(L, len(LAYER_FEATURES))`.
        fixed: `(M,)` cost outside all layers (file headers, runtime overhead).
        original: `(M,)` cost of the original network, fixed part included.
        accuracy, chance: as in `Baseline`; no drop is larger than `accuracy - chance`.
        samples: validation samples that the metric is taken on.
        refused: layer, recipe and reason of what is not offered because the device does not run it.
    """

    network: str
    layers: tuple[str, ...]
    recipes: tuple[tuple[str, ...], ...]
    legal: Bools
    cost: Floats
    drop: Floats
    output_error: Floats
    keep_levels: Floats
    in_share: Floats
    out_group: Ints
    leads: Bools
    recipe_level: Ints
    integers: Bools
    nearest: Ints
    border: Floats
    recipe_features: Floats
    layer_features: Floats
    fixed: Floats
    original: Floats
    accuracy: float
    chance: float
    samples: int
    refused: tuple[tuple[str, str, str], ...] = ()

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def num_slots(self) -> int:
        """K."""
        return int(self.legal.shape[1])

    @cached_property
    def num_groups(self) -> int:
        """G."""
        return int(self.in_share.shape[1])
