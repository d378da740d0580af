"""What a compression is asked to do: one frozen value for each subject, made from a user's flat options."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from plywise.compressors.errors import ConfigurationError, unknown_name
from plywise.compressors.plain_values import as_number, as_whole
from plywise.env.bank.repair import FULL, Repair, make_repair
from plywise.env.recovery.recovery_settings import RecoverySettings, make_recovery
from plywise.env.score.demand import Demand, make_demand
from plywise.env.task.task import Task
from plywise.experiments.commands.option_kinds import plain_options
from plywise.experiments.commands.study import checked_seed
from plywise.experiments.data.preprocessing import NOTHING_GIVEN, Preprocessing, make_preprocessing
from plywise.experiments.networks.model_loading import check_network
from plywise.experiments.networks.zoo import zoo_entry

MOST_EVALUATIONS = 10_000_000
"""Plans that are scored; more would take years."""

LIMITS = ("drop", "storage", "latency", "energy")
"""Short names of what a user may limit."""

OWN_DATA = "own data"
"""What data are called that were given in Python."""


@dataclass(frozen=True)
class SourceSettings:
    """What is compressed, and on which data.

    Attributes:
        model: `zoo:NAME`, `package.module:factory` or `path.py:factory`, or the network itself.
        data: dataset, for example `digits` or `cifar10:PATH`; None where there is a task.
        task: the network's task, or `path.py:make_task`; None for a classifier of a dataset's images, and for a network
            of the zoo that has its own.
        weights: a state dict for the network.
        preprocessing: of the images, as for `load_dataset`.
        ignored: layers to leave as they are: names, patterns of names, types and names of types.
    """

    model: str | nn.Module
    data: str | None = None
    task: Task | str | None = None
    weights: Path | None = None
    preprocessing: Preprocessing = NOTHING_GIVEN
    ignored: tuple[str | type, ...] = ()

    def __post_init__(self) -> None:
        if self.model is None:
            raise ConfigurationError("which network? Give model, or a front that says it (from=FOLDER)")
        check_network(self.model)
        if self.data is not None and self.task is not None:
            raise ConfigurationError(f"data={self.data!r} and a task were given; one of them says what the data are")
        if self.weights is not None and not isinstance(self.model, str):
            raise ConfigurationError("the network is given with its weights: leave out 'weights'")
        for each in self.ignored:
            if not isinstance(each, str | type):
                raise ConfigurationError(f"ignored={each!r} must be a name, a pattern of names, or a type of layer")

    @property
    def name(self) -> str:
        """What to call the network."""
        return self.model if isinstance(self.model, str) else type(self.model).__name__

    @property
    def data_name(self) -> str:
        """What to call the data."""
        if self.data is not None:
            return self.data
        if self.task is None and isinstance(self.model, str):
            return zoo_entry(self.model.removeprefix("zoo:")).dataset
        return self.task if isinstance(self.task, str) else OWN_DATA


@dataclass(frozen=True)
class SearchSettings:
    """Who looks for the plan.

    Attributes:
        agent: folder of a trained agent, which looks for it.
        method: who looks for it instead: one of `SEARCH_METHODS`.
        plan: files of a plan or a scheme to apply instead of searching, of which the last one wins; empty for none.
        evaluations: how many plans are scored exactly, at most.
        seed: of every random choice.
    """

    agent: Path | None = None
    method: str | None = None
    plan: tuple[Path, ...] = ()
    evaluations: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", checked_seed(self.seed))
        evaluations = as_whole(self.evaluations)
        if evaluations is None or not 1 <= evaluations <= MOST_EVALUATIONS:
            raise ConfigurationError(
                f"evaluations={self.evaluations!r} must be at least 1 and at most {MOST_EVALUATIONS:,}, a whole "
                "number: no plan can be chosen without scoring one"
            )
        object.__setattr__(self, "evaluations", evaluations)


@dataclass(frozen=True)
class CompressionSettings:
    """All that a compression is asked to do.

    Attributes:
        source: what is compressed.
        search: who looks for the plan.
        demand: what is wanted.
        drop: how much of the metric may be lost, in its unit, instead of the demand's points; None for those.
        recovery: how the compressed network is fine-tuned, None for not at all.
        device: where the network will run, as for `open_device`; this machine where None.
        repair: of compressed networks; less than all of it is for comparison.
    """

    source: SourceSettings
    search: SearchSettings = field(default_factory=SearchSettings)
    demand: Demand = field(default_factory=Demand)
    drop: float | None = None
    recovery: RecoverySettings | None = None
    device: str | None = None
    repair: Repair = FULL


def make_compression(options: Mapping[str, Any]) -> CompressionSettings:
    """Returns the settings that a user's options come to.

    Args:
        options: by name, as `plywise compress` and `plywise.compress` take them. Paths may be texts, names a sequence
            or a text with commas. Those that are no field of another subject are the demand's.

    Raises:
        ConfigurationError: on values that are not allowed and on names that are not known.
    """
    left = plain_options(options)
    preprocessing = make_preprocessing(
        **{name: left.pop(name) for name in ("mean", "std", "size", "crop", "channels") if name in left}
    )
    source = {each.name: left.pop(each.name) for each in fields(SourceSettings) if each.name in left}
    search = {each.name: left.pop(each.name) for each in fields(SearchSettings) if each.name in left}
    recovery = {name: left.pop(name) for name in ("recover", "epochs", "incremental", "gradients") if name in left}
    kinds, device = _names(left.pop("gradients_of", ())), left.pop("device", None)
    repair = make_repair(_names(left.pop("repair", ())))
    for group, name in ((source, "weights"), (search, "agent")):
        if group.get(name) is not None:
            group[name] = Path(group[name])
    plans = search.get("plan") or ()
    search["plan"] = tuple(map(Path, [plans] if isinstance(plans, str | Path) else plans))
    found = SearchSettings(**search)
    source["ignored"] = _listed(source.get("ignored"))
    limits, drop = make_limits(left.pop("limits", None))
    for name in limits.keys() & left.keys():
        raise ConfigurationError(f"{name}={left[name]!r} and the same in limits were given; leave one of them out")
    return CompressionSettings(
        source=SourceSettings(**source, preprocessing=preprocessing),
        search=found,
        demand=make_demand(left | limits),
        drop=drop,
        recovery=make_recovery(recovery.pop("recover", None), **recovery, gradients_of=kinds, seed=found.seed),
        device=None if device is None else str(device),
        repair=repair,
    )


def make_limits(limits: Mapping[str, float] | None) -> tuple[dict[str, float], float | None]:
    """Returns the fields of a demand that limits by short names come to, and the drop in the metric's unit.

    Raises:
        ConfigurationError: on unknown names, and on a drop that is no number of at least 0.
    """
    left = dict(limits or {})
    for name in left:
        if name not in LIMITS:
            raise unknown_name("limit", name, LIMITS)
    drop = left.pop("drop", None)
    number = as_number(drop)
    if drop is not None and (number is None or not 0 <= number < math.inf):
        raise ConfigurationError(f"limits['drop']={drop!r} must be a number of at least 0, in the metric's unit")
    return {f"max_{name}": share for name, share in left.items()}, number


def _listed(given: str | type | Sequence[str | type] | None) -> tuple[str | type, ...]:
    return (given,) if isinstance(given, type) else _names(given)  # type: ignore[arg-type]


def _names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(given, str):
        return tuple(name.strip() for name in given.split(",")) if given else ()
    return tuple(given or ())
