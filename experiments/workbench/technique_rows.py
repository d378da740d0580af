"""What the technique table compares: each technique alone, the ten most useful pairs, and what is asked of them."""

from collections.abc import Iterable
from dataclasses import dataclass

from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe, Stage, techniques
from plywise.compressors.sparsity.global_pruning import global_threshold_plan
from plywise.compressors.statistics.statistics import CRITERIA
from plywise.compressors.structure.filter_pruning import FilterPruning
from plywise.env.network.network import Network
from plywise.experiments.handover.uniform_int8 import UNIFORM

GLOBAL_THRESHOLD = "magnitude_pruning(sparsity=0.5), one threshold for all layers"

HALF = {
    "spatial": "low_rank(ratio=0.5)",
    "input": "low_rank(ratio=0.55, sides=input)",
    "output": "low_rank(ratio=0.55, sides=output)",
    "both": "low_rank(ratio=0.64, sides=both)",
    "cp": "low_rank(ratio=0.5, sides=cp)",
}
"""Decompositions that leave ResNet-20 nearest to half of its macs: ranks come in steps of 4."""

HALF_PRUNED = "filter_pruning(ratio=0.5)"

ALONE = (
    "uniform_quantization(bits=4)",
    "uniform_quantization(bits=8)",
    "uniform_quantization(bits=7)",
    "uniform_quantization(bits=4, rounding=nearest)",
    "uniform_quantization(bits=4, rounding=adaptive)",
    "uniform_quantization(bits=4, granularity=group)",
    "uniform_quantization(bits=3)",
    "uniform_quantization(bits=2, scheme=affine)",
    "uniform_quantization(bits=4, scale=minmax)",
    "uniform_quantization(bits=3, scale=minmax)",
    "step_quantization(step=0.5)",
    "step_quantization(step=1.0)",
    "step_quantization(step=1.5)",
    UNIFORM,
    "codebook(bits=4)",
    "codebook(bits=3)",
    "codebook(bits=2)",
    "fixed_point(width=8)",
    "dynamic_fixed_point(width=8)",
    "dynamic_fixed_point(width=4)",
    "minifloat(exponent=5)",
    "minifloat(exponent=4, mantissa=3)",
    "power_of_two(bits=4)",
    "logarithmic(bits=4)",
    "recentralized(bits=4)",
    "magnitude_pruning(sparsity=0.5)",
    "magnitude_pruning(sparsity=0.7)",
    "optimal_brain(sparsity=0.5)",
    "optimal_brain(sparsity=0.7)",
    "nm_sparsity(keep=2)",
    "block_sparsity(sparsity=0.5)",
    "filter_pruning(ratio=0.25)",
    *(str(FilterPruning(0.5, criterion)) for criterion in CRITERIA),
    *HALF.values(),
    "depthwise_separable(filters=4)",
)

PAIRS = (
    "magnitude_pruning(sparsity=0.5) + uniform_quantization(bits=4)",
    "magnitude_pruning(sparsity=0.5) + uniform_quantization(bits=3)",
    "magnitude_pruning(sparsity=0.7) + uniform_quantization(bits=4)",
    "optimal_brain(sparsity=0.7) + uniform_quantization(bits=4)",
    "step_quantization(step=1.0) + activation_quantization",
    "magnitude_pruning(sparsity=0.5) + recentralized(bits=4)",
    "uniform_quantization(bits=4) + activation_quantization",
    "low_rank(ratio=0.6) + uniform_quantization(bits=4)",
    "filter_pruning(ratio=0.25) + uniform_quantization(bits=4)",
    "filter_pruning(ratio=0.25) + magnitude_pruning(sparsity=0.5)",
)


@dataclass(frozen=True)
class Bar:
    """What is asked of a row.

    Attributes:
        what: in words.
        row: name of the row.
        asked: points of accuracy: at most this drop, or at least this lead over `against`.
        against: name of the row that must be beaten, None where the original is the measure.
    """

    what: str
    row: str
    asked: float
    against: str | None = None

    def figure(self, accuracy: dict[str, float], original: float) -> float:
        """Returns the drop, or the lead over `against`, in points."""
        if self.against is None:
            return original - accuracy[self.row]
        return accuracy[self.row] - accuracy[self.against]

    def met(self, figure: float) -> bool:
        """Returns whether a figure is what is asked for."""
        return figure <= self.asked if self.against is None else figure >= self.asked


def alone() -> tuple[str, ...]:
    """Returns the single recipes, with the default settings of every technique that none of them names."""
    named = {technique.name for text in ALONE for technique in Recipe.parse(text).techniques}
    return (*ALONE, *(str(cls()) for name, cls in techniques().items() if name not in named))


def one_of_each(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the first recipe of each combination of techniques."""
    first: dict[tuple[str, ...], str] = {}
    for name in names:
        first.setdefault(tuple(technique.name for technique in Recipe.parse(name).techniques), name)
    return tuple(first.values())


def plan_of(network: Network, name: str) -> tuple[Plan, int]:
    """Returns the plan of a row, and how many layers take nothing of it because it does not suit them.

    Every layer takes the recipe, but for structures, which spare the first and the last layer. Layers whose channels
    follow those of another one leave pruning to it.
    """
    if name == GLOBAL_THRESHOLD:
        modules = {layer.name: network.modules[layer.name] for layer in network.layers}
        return Plan(network.name, global_threshold_plan(modules, 0.5)), 0
    recipe, refused = Recipe.parse(name), 0
    plan = {}
    for place, layer in enumerate(network.layers):
        own = recipe
        at_the_end = place in (0, len(network.layers) - 1)
        follows = isinstance(recipe.at(Stage.STRUCTURE), FilterPruning) and not layer.leads
        if at_the_end or follows:
            own = recipe.without(Stage.STRUCTURE)
        unsuitable = network.unsupported(layer.name, own) is not None
        refused += unsuitable or (follows and not at_the_end and layer.group is None)
        plan[layer.name] = Recipe() if unsuitable else own
    return Plan(network.name, plan), refused
