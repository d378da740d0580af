"""Random price tables that look like those of real networks: for training, tests and the default environment."""

import numpy as np

from plywise.env.arrays import Bools, Doubles, Floats, Ints
from plywise.env.prices.prices import LAYER_FEATURES, RECIPE_FEATURES, PriceTable

KEEP_LEVELS = (1.0, 0.875, 0.75, 0.5, 0.25)
CHANNELS = (16, 32, 64, 128, 256)
SAMPLES = (300, 400, 1000, 2000, 5000)
"""Validation samples that there may be."""
BYTES_PER_MS = 2e6
MJ_PER_MS = 8.0


def synthetic_table(
    rng: np.random.Generator, num_layers: int, num_slots: int = 32, pruning: bool = True, name: str = "synthetic"
) -> PriceTable:
    """Returns the price list of a network that does not exist.

    Layer sizes and sensitivities are lognormal, the drop of a recipe grows with its relative output error with
    noise of its own, 8-bit activations speed up wide layers and slow down narrow ones, fewer bits save storage only.

    Args:
        rng: source of all randomness.
        num_layers: L.
        num_slots: K; the first is identity.
        pruning: whether about half of the layers decide for a channel group.
        name: of the network.
    """
    width = np.sort(rng.choice(CHANNELS, num_layers))
    size = width.astype(float) ** 2 * rng.lognormal(1.5, 0.6, num_layers)  # parameters
    milliseconds = size * rng.lognormal(0.0, 0.7, num_layers) / BYTES_PER_MS
    in_share, out_group, leads = _groups(rng, num_layers, pruning)
    features, level, integers = _recipes(rng, num_layers, num_slots, leads)
    cost = _costs(rng, features, level, integers, size, milliseconds, width, out_group >= 0)
    error, drop = _losses(rng, features, integers, size)
    original_layers = cost[:, :, 0, 0, 0].sum(1)
    fixed = original_layers * np.array([0.01, rng.uniform(0.0, 0.15), rng.uniform(0.0, 0.1)])
    accuracy = float(rng.uniform(70, 96))
    features[:, :, 6] = np.log10(np.maximum(error, 1e-8)) / 5
    legal = _legal(rng, num_layers, num_slots)
    return PriceTable(
        network=name,
        layers=tuple(f"layer{index}" for index in range(num_layers)),
        recipes=tuple(tuple(_written(row) for row in menu) for menu in features),
        legal=legal,
        cost=cost.astype(np.float32),
        drop=drop.astype(np.float32),
        output_error=error.astype(np.float32),
        keep_levels=np.array(KEEP_LEVELS, np.float32),
        in_share=in_share,
        out_group=out_group,
        leads=leads,
        recipe_level=level,
        integers=integers & legal,
        nearest=np.maximum(np.arange(num_layers) - np.where(rng.random(num_layers) < 0.8, 1, 2), -1),
        border=(milliseconds * rng.uniform(0.0, 0.3, num_layers)).astype(np.float32),
        recipe_features=features.astype(np.float32),
        layer_features=_layer_features(size, milliseconds, width),
        fixed=fixed.astype(np.float32),
        original=(original_layers + fixed).astype(np.float32),
        accuracy=accuracy,
        chance=10.0,
        samples=int(rng.choice(SAMPLES)),
    )


def _groups(rng: np.random.Generator, count: int, pruning: bool) -> tuple[Floats, Ints, Bools]:
    """Gives about half of the layers a group of their own, consumed by the next one or two; some have a follower."""
    out_group, leads = np.full(count, -1), np.zeros(count, bool)
    chosen = np.flatnonzero(rng.random(count) < 0.5)[: count - 1] if pruning else np.array([], int)
    chosen = chosen[chosen < count - 1]
    in_share = np.zeros((count, max(len(chosen), 1)), np.float32)
    for group, layer in enumerate(chosen):
        leads[layer], out_group[layer] = True, group
        follower = layer + 2
        if rng.random() < 0.3 and follower < count - 1 and follower not in chosen:
            out_group[follower] = group
            in_share[follower + 1, group] = max(1.0 - in_share[follower + 1].sum(), 0.0)
        room = 1.0 - in_share[layer + 1].sum()
        in_share[layer + 1, group] += max(room, 0.0) * (1.0 if rng.random() < 0.7 else rng.uniform(0.2, 0.9))
    return in_share, out_group, leads


def _recipes(rng: np.random.Generator, count: int, slots: int, leads: Bools) -> tuple[Doubles, Ints, Bools]:
    """Draws one catalogue for the network; slots that prune stand as their weight-only twin where no group is led."""
    kinds = np.zeros((slots, len(RECIPE_FEATURES)))
    kinds[:, 0], kinds[1:, 0] = 1.0, 0.0
    kinds[:, 4:6] = 1.0
    level, integers = np.zeros(slots, np.int64), np.zeros(slots, bool)
    for slot in range(1, slots):
        kinds[slot, 4] = (8, 7, 6, 5, 4, 3, 2)[(slot - 1) % 7] / 32
        integers[slot] = kinds[slot, 4] <= 7 / 32 and rng.random() < 0.5
        kinds[slot, 3] = (0.0, 0.0, 0.5, 0.7)[(slot - 1) // 7 % 4]
        level[slot] = rng.integers(1, len(KEEP_LEVELS)) if slot % 3 == 0 else 0
        kinds[slot, 2] = 0.5 if slot % 11 == 5 else 0.0
    kinds[integers, 5] = 8 / 32
    features = np.repeat(kinds[None], count, 0)
    levels = np.where(leads[:, None], level, 0)
    features[:, :, 1] = 1.0 - np.array(KEEP_LEVELS)[levels]
    return features, levels, np.repeat(integers[None], count, 0)


def _costs(
    rng: np.random.Generator,
    features: Doubles,
    level: Ints,
    integers: Bools,
    size: Doubles,
    milliseconds: Doubles,
    width: Ints,
    grouped: Bools,
) -> Doubles:
    count, slots = level.shape
    keep = np.array(KEEP_LEVELS)
    rank, sparsity, bits = features[:, :, 2:5].transpose(2, 0, 1)
    density = (1.0 - rank) * (1.0 - 0.8 * sparsity)
    ladder = density * bits * rng.lognormal(0.0, 0.05, (count, slots))
    integer = np.where(width < 32, rng.uniform(0.95, 1.3, count), rng.uniform(0.45, 0.7, count))[:, None]
    speed = np.where(integers, integer, 1.0) * (1.0 - 0.7 * rank) * rng.lognormal(0.0, 0.03, (count, slots))
    ladder[:, 0], speed[:, 0] = 1.0, 1.0
    own = keep[level]  # (L, K)
    out = np.where((level > 0)[:, :, None], own[:, :, None], np.where(grouped[:, None, None], keep, 1.0))  # (L, K, Q)
    rest = keep[None, None, :, None] * out[:, :, None, :]  # (L, K, Q, Q)
    storage = 4 * size[:, None, None, None] * (ladder[:, :, None, None] * rest * 0.99 + 0.01)
    latency = milliseconds[:, None, None, None] * speed[:, :, None, None] * (0.85 * rest + 0.15)
    energy = MJ_PER_MS * latency * (0.5 + 0.5 * ladder[:, :, None, None])
    return np.stack([storage, latency, energy])


def _losses(rng: np.random.Generator, features: Doubles, integers: Bools, size: Doubles) -> tuple[Doubles, Doubles]:
    count, slots = features.shape[:2]
    pruned, rank, sparsity, bits = features[:, :, 1:5].transpose(2, 0, 1)
    error = 1.5 * np.exp2(-64 * np.where(bits < 1, bits, 12 / 32)) + 0.12 * sparsity**3 + 0.15 * rank**2
    error = (error + 0.3 * pruned**1.5 + 2e-4 * integers) * rng.lognormal(0.0, 0.25, (count, slots))
    error[:, 0] = 0.0
    sensitivity = rng.lognormal(1.8, 0.9, (count, 1)) * (size.mean() / size[:, None]) ** 0.15
    drop = sensitivity * error * 10 / np.sqrt(count) * rng.lognormal(0.0, 0.2, (count, slots))
    return error, np.minimum(drop, 70.0)


def _legal(rng: np.random.Generator, count: int, slots: int) -> Bools:
    legal: Bools = rng.random((count, slots)) < 0.95
    legal[:, 0] = True
    return legal


def _layer_features(size: Doubles, milliseconds: Doubles, width: Ints) -> Floats:
    count = len(size)
    features = np.zeros((count, len(LAYER_FEATURES)), np.float32)
    features[-1, 0] = 1.0
    features[:, 3], features[:, 4] = milliseconds / milliseconds.sum(), size / size.sum()
    features[:, 5], features[:, 6] = np.log2(width) / 12, np.log2(np.maximum(size / width, 1)) / 12
    features[:, 7] = np.arange(count) / count
    return features


def _written(row: Doubles) -> str:
    """Names a slot by its features: these tables are of no network, so nothing ever applies the recipe."""
    if row[0]:
        return "identity"
    named = zip(RECIPE_FEATURES[1:6], row[1:6], (0.0, 0.0, 0.0, -1.0, 1.0), strict=True)
    return "synthetic(" + ", ".join(f"{name}={value:.4g}" for name, value, plain in named if value != plain) + ")"
