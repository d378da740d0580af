"""What a compression is asked to do: one frozen value for each subject, made from a user's flat options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral
from pathlib import Path
from typing import Any

from plywise.compressors.errors import ConfigurationError
from plywise.env.bank.repair import FULL, Repair, make_repair
from plywise.env.recovery.recovery_settings import RecoverySettings, make_recovery
from plywise.env.score.demand import Demand, make_demand
from plywise.experiments.commands.study import check_seed
from plywise.experiments.data.normalisation import Normalisation, make_normalisation


@dataclass(frozen=True)
class SourceSettings:
    """What is compressed, and on which data.

    Attributes:
        model: `zoo:NAME`, `package.module:factory` or `path.py:factory`.
        data: dataset, for example `digits` or `cifar10:PATH`.
        weights: a state dict for the network.
        normalisation: of the images, as for `load_dataset`.
    """

    model: str
    data: str
    weights: Path | None = None
    normalisation: Normalisation | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str):
            raise ConfigurationError(
                f"model is a {type(self.model).__name__} and must be a text: 'zoo:NAME', 'package.module:function' or "
                "'file.py:function', where the function returns the network; '__main__:function' is one of your own "
                "script"
            )


@dataclass(frozen=True)
class SearchSettings:
    """Who looks for the plan.

    Attributes:
        agent: folder of a trained agent, which looks for it.
        method: who looks for it instead: one of `SEARCH_METHODS`.
        plan: a plan or a scheme to apply instead of searching.
        evaluations: how many plans are scored exactly, at most.
        seed: of every random choice.
    """

    agent: Path | None = None
    method: str | None = None
    plan: Path | None = None
    evaluations: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not isinstance(self.evaluations, Integral) or self.evaluations < 1:
            raise ConfigurationError(
                f"evaluations={self.evaluations!r} must be at least 1, a whole number: no plan can be chosen without "
                "scoring one"
            )


@dataclass(frozen=True)
class CompressionSettings:
    """All that a compression is asked to do.

    Attributes:
        source: what is compressed.
        search: who looks for the plan.
        demand: what is wanted.
        recovery: how the compressed network is fine-tuned, None for not at all.
        device: where the network will run, as for `open_device`; this machine where None.
        repair: of compressed networks; less than all of it is for comparison.
    """

    source: SourceSettings
    search: SearchSettings = field(default_factory=SearchSettings)
    demand: Demand = field(default_factory=Demand)
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
    left = dict(options)
    mean, std = left.pop("mean", None), left.pop("std", None)
    source = {each.name: left.pop(each.name) for each in fields(SourceSettings) if each.name in left}
    search = {each.name: left.pop(each.name) for each in fields(SearchSettings) if each.name in left}
    recovery = {name: left.pop(name) for name in ("recover", "epochs", "incremental", "gradients") if name in left}
    kinds, device = _names(left.pop("gradients_of", ())), left.pop("device", None)
    repair = make_repair(_names(left.pop("repair", ())))
    for group, name in ((source, "weights"), (search, "agent"), (search, "plan")):
        if group.get(name) is not None:
            group[name] = Path(group[name])
    found = SearchSettings(**search)
    return CompressionSettings(
        source=SourceSettings(**source, normalisation=make_normalisation(mean, std)),
        search=found,
        demand=make_demand(left),
        recovery=make_recovery(recovery.pop("recover", None), **recovery, gradients_of=kinds, seed=found.seed),
        device=None if device is None else str(device),
        repair=repair,
    )


def _names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(given, str):
        return tuple(name.strip() for name in given.split(",")) if given else ()
    return tuple(given or ())
