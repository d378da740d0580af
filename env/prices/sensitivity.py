"""How much each recipe on its own disturbs the network: a few probes for each layer, the rest in between.

The disturbance is the mean distance of the compressed network's outputs from the original's: of logits, their
Kullback-Leibler divergence. It needs no labels, is never negative, and over layers it adds up (facts: the sum of
single-layer loss increases ranks random mixed plans with Spearman 0.98). What lies between probes is read off a
monotone line over the relative output error, which the bank knows in closed form. Probes run on the samples that tell
the most, see `ProbeSamples`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from plywise.compressors.modules.layers import weight_matrices
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe, Stage
from plywise.compressors.statistics.error_feedback import relative_output_error
from plywise.compressors.statistics.leaves import effective_matrix
from plywise.compressors.structure.filter_pruning import FilterPruning
from plywise.env.bank.bank import Bank, State
from plywise.env.bank.scorer import Scorer
from plywise.env.network.network import Layer, Network
from plywise.env.storage.result_store import ResultStore
from plywise.env.storage.timing_lock import pause, working
from plywise.env.task.batch import Batch, items_in
from plywise.env.task.outputs import logits_in
from plywise.env.task.samples import Samples

Probe = Callable[[str, Recipe], float]
"""Measures the divergence that a recipe on the layer of a name causes."""

PROBES = 3
"""Recipes of one kind that are probed on each layer, at most; those that only prune are probed all."""
ALIKE, APART = math.log(2.0), 2.0
"""Recipes of one kind whose output errors differ by less than this, in logarithms, need one probe; those between two
probes that are less than this apart need no third one."""
PROPORTION = 0.2
"""How far the divergence between two probes may be from following the error in proportion, as an exponent of it, before
a third one is run in the middle."""
LEAST = 1e-7
"""Divergences and output errors below this count as this."""

MOST = 100.0
"""Nats that outputs which are no numbers count for."""

PROBE_SAMPLES = 128
"""Samples that probes run on."""

PROBE_INPUTS = 32
"""Calibration inputs that probes are repaired on. A probe runs both; 128 tell hardly more."""

CERTAIN = 0.3
"""How much the certainty of a sample may count against it: as the mean uncertainty over all times this."""


@dataclass(frozen=True)
class Sensitivity:
    """Of one layer: `output_error` and `divergence` `(recipes,)` of each of its recipes alone."""

    output_error: NDArray[np.float64]
    divergence: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ProbeSamples:
    """Some samples, whose weighted sum of divergences estimates the mean over all.

    A change moves logits the more the less certain the original is: where they change by independent amounts, the
    divergence is in proportion to `1 - sum(p ** 2)` over its probabilities `p`. Samples are therefore drawn with a
    chance in that proportion and count by its inverse (Horvitz and Thompson, A Generalization of Sampling Without
    Replacement from a Finite Universe, 1952). Drawn systematically in the order of their uncertainty, 128 tell as much
    as 512 that come first. Of other outputs all samples have the same chance; of samples that are not even, the first
    ones count.

    Attributes:
        samples: `n` of them.
        outputs: of the original, for each batch.
        weights: `(n,)`, how much each counts.
    """

    samples: Samples
    outputs: tuple[Any, ...]
    weights: Tensor

    @classmethod
    def of(cls, samples: Samples, reference: Callable[[Batch], Any], count: int = PROBE_SAMPLES) -> "ProbeSamples":
        """Draws up to `count` of the samples, always the same; `reference` gives the original's outputs on a batch."""
        if not samples.even:
            some = samples.first(count)
            return cls(some, tuple(map(reference, some)), torch.full((len(some),), 1.0 / len(some)))
        uncertainty = torch.cat([_uncertainty(reference(batch), items_in(batch)) for batch in samples])
        chance = _chances(uncertainty + CERTAIN * uncertainty.mean() + LEAST, count)
        order = uncertainty.argsort(stable=True)
        place = (chance[order].cumsum(0) + 0.5).floor()
        drawn = order[place.diff(prepend=place.new_zeros(1)) > 0]
        weights = 1.0 / (chance[drawn] * len(samples))
        some = samples.at(drawn)
        return cls(some, tuple(map(reference, some)), weights.float())

    def divergence(self, model: nn.Module) -> float:
        """Returns the estimated mean distance of a network's outputs from the original's over all samples."""
        distance = self.samples.judge.distance
        each = zip(self.samples.outputs(model), self.outputs, strict=True)
        return float(torch.cat([distance(*pair) for pair in each]).float() @ self.weights)


def _uncertainty(outputs: Any, items: int) -> Tensor:
    """Returns that of each item, `(n,)`."""
    logits = logits_in(outputs)
    if logits is None:
        return torch.ones(items, dtype=torch.float64)
    found = 1.0 - logits.double().softmax(-1).square().sum(-1)
    return found if found.dim() == 1 else found.flatten(1).mean(1)


def _chances(sizes: Tensor, count: int) -> Tensor:
    """Returns chances `(n,)` of being drawn, in proportion to `sizes` but at most 1, that sum to `count` or to n."""
    chance = torch.zeros_like(sizes)
    while (free := chance < 1.0).any() and chance.sum() < count - 0.5:
        chance[free] = sizes[free] * (count - (~free).sum()) / sizes[free].sum()
        chance = chance.clamp(max=1.0)
    return chance


def single(network: Network, layer: str, recipe: Recipe) -> Plan:
    """Returns the plan that changes one layer only."""
    return Plan(network.name, {other.name: recipe if other.name == layer else Recipe() for other in network.layers})


class Probing:
    """Measures how sensitive the layers of a network are, one by one."""

    def __init__(
        self,
        bank: Bank,
        recipes: Mapping[str, Sequence[Recipe]],
        probed: ProbeSamples,
        store: ResultStore,
        key: str,
    ) -> None:
        """Prepares; nothing is measured yet.

        Args:
            bank: of the network.
            recipes: for each layer, those that it can take.
            probed: held-out samples to compare outputs on.
            store: where finished probes are kept.
            key: what identifies network, data and code in the store.
        """
        self._bank, self._recipes, self._probed = bank, recipes, probed
        self._store, self._key = store, key
        self._scorer = Scorer(bank)
        self._places = {each.name: place for place, each in enumerate(bank.network.layers)}
        self._repair = replace(bank.repair, inputs=min(PROBE_INPUTS, bank.repair.inputs))

    @working()
    def sensitivity(self, layer: Layer) -> Sensitivity:
        """Measures one layer."""
        return _sensitivity(self._bank, layer, self._recipes[layer.name], self._probe)

    def _probe(self, layer: str, recipe: Recipe) -> float:
        pause()
        name = f"{self._key}/probe/{layer}/{recipe}"
        found = self._store.get(name)
        if found is None:
            plan, before = single(self._bank.network, layer, recipe), self._places[layer]
            found = self._scorer.run(plan, self._probed.divergence, self._repair, keep=before)[1]
            self._store.put(name, found)
        return max(LEAST, float(found)) if math.isfinite(found) else MOST


def _sensitivity(bank: Bank, layer: Layer, recipes: Sequence[Recipe], probe: Probe) -> Sensitivity:
    inner = {recipe: recipe.without(Stage.ACTIVATIONS) for recipe in recipes}
    errors = {base: output_error(bank, layer, base) for base in dict.fromkeys(inner.values())}
    cuts = {cut: probe(layer.name, Recipe((cut,))) for cut in dict.fromkeys(map(_pruning, errors)) if cut}
    kinds: dict[str, list[Recipe]] = {}
    for base in sorted(errors, key=errors.__getitem__):
        kept = _besides_pruning(base)
        if kept.techniques:
            kinds.setdefault(_kind(kept), []).extend([base] if kept == base else [])
    lines = {kind: _line(bases, errors, partial(probe, layer.name)) for kind, bases in kinds.items()}

    def predicted(base: Recipe) -> float:
        cut, kept = _pruning(base), _besides_pruning(base)
        return (cuts[cut] if cut else 0.0) + (lines[_kind(kept)](errors[base]) if kept.techniques else 0.0)

    rounded = next((recipe for recipe in recipes if recipe != inner[recipe]), None)
    rounding = 0.0 if rounded is None else max(0.0, probe(layer.name, rounded) - predicted(inner[rounded]))
    found = [predicted(inner[recipe]) + (rounding if recipe != inner[recipe] else 0.0) for recipe in recipes]
    return Sensitivity(np.array([errors[inner[recipe]] for recipe in recipes]), np.array(found))


def _kind(recipe: Recipe) -> str:
    """Recipes of one kind disturb the network alike where their output errors are alike."""
    return recipe.techniques[0].name


def _line(
    recipes: Sequence[Recipe], errors: Mapping[Recipe, float], probe: Callable[[Recipe], float]
) -> "MonotoneLine":
    """Probes as few of the recipes, sorted by error, as tell the divergence as a function of the error."""
    if not recipes:
        return MonotoneLine([], [])
    logs = np.log(np.maximum([errors[recipe] for recipe in recipes], LEAST))
    span = logs[-1] - logs[0]
    first, middle, last = (int(np.abs(logs - goal).argmin()) for goal in np.linspace(logs[0], logs[-1], PROBES))
    found = {place: probe(recipes[place]) for place in ((first, last) if span > ALIKE else (middle,))}
    if span > APART and abs(math.log(found[last] / found[first]) / span - 1.0) > PROPORTION:
        found[middle] = probe(recipes[middle])
    places = sorted(found)
    return MonotoneLine([errors[recipes[place]] for place in places], [found[place] for place in places])


def _pruning(recipe: Recipe) -> FilterPruning | None:
    technique = recipe.at(Stage.STRUCTURE)
    return technique if isinstance(technique, FilterPruning) else None


def _besides_pruning(recipe: Recipe) -> Recipe:
    return recipe if _pruning(recipe) is None else recipe.without(Stage.STRUCTURE)


def output_error(bank: Bank, layer: Layer, recipe: Recipe) -> float:
    """Returns the relative squared error of a layer's output, of the channels that stay; inputs are not rounded."""
    if not recipe.techniques:
        return 0.0
    cut = _pruning(recipe)
    state: State = ((layer.group, cut),) if cut is not None and layer.group is not None else ()
    before = weight_matrices(bank.prepared(layer.name, state))
    after = effective_matrix(bank.entry(layer.name, recipe, state))
    return relative_output_error(before, after, bank.calibration.statistics[layer.name].covariance)


class MonotoneLine:
    """Divergence over output error, straight in logarithms between probes, never falling."""

    def __init__(self, errors: Sequence[float], values: Sequence[float]) -> None:
        """Goes through values at errors that rise."""
        self.x = np.log(np.maximum(errors, LEAST))
        self.y = np.maximum.accumulate(np.log(np.maximum(values, LEAST)))

    def __call__(self, error: float) -> float:
        """Returns the value at an error."""
        x = np.log(max(error, LEAST))
        if not len(self.x):
            return float(np.exp(x))
        y = np.interp(x, self.x, self.y)
        # Outside the probes the divergence follows the error in proportion.
        y += min(0.0, x - self.x[0]) + max(0.0, x - self.x[-1])
        return float(np.exp(y))
