"""Trains an agent over a zoo of networks: `python experiments/train_agent.py --help`, or `plywise train --help`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from plywise.agent.learning.ppo import PPOSettings, train
from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.compressors.plain_values import as_json
from plywise.env.costs.devices import HERE
from plywise.env.storage.memory import GIB, limit_memory, machine_memory
from plywise.env.walk.demand_sampler import DemandSampler
from plywise.env.walk.observation import CONTEXT_FEATURES, ROW_FEATURES
from plywise.env.walk.vector_env import BatchedCompressionEnv
from plywise.experiments.commands.compression_settings import SourceSettings
from plywise.experiments.commands.price_tables import dataset_for, own_pricing, price_networks
from plywise.experiments.commands.study import checked_seed
from plywise.experiments.console.mistakes import telling_mistakes
from plywise.experiments.console.options import OptionParser
from plywise.experiments.data.preprocessing import NOTHING_GIVEN, Preprocessing
from plywise.experiments.handover.run_folder import alone_in, check_writable
from plywise.experiments.networks.zoo import TRAINED_HERE, zoo_entry

RUN = "run.json"
"""What the run in a folder was asked to do."""

SLOTS, FLOAT_BYTES = 84, 4
"""Rows of the longest menus among the zoo's networks, and bytes of each figure in them."""


def train_agent(
    networks: Sequence[str] = TRAINED_HERE,
    hold_out: Sequence[str] = (),
    data: str | None = None,
    out: Path = Path("runs/agent"),
    settings: PPOSettings | None = None,
    devices: Sequence[str] = (HERE,),
    memory: float | None = None,
    preprocessing: Preprocessing = NOTHING_GIVEN,
    own: SourceSettings | None = None,
) -> RecipeAgent:
    """Prices the networks, then trains one agent over all of them and over sampled demands.

    Args:
        networks: names of the zoo.
        hold_out: names among them that the agent must not see.
        data: dataset that classifiers of images run on, as for `dataset_for`; the others have data of their own.
        out: receives `agent/` and `tensorboard/`; an unfinished run in it goes on, a finished one is loaded.
        settings: of PPO.
        devices: where the networks will run, as for `open_device`; the agent learns for all of them.
        memory: GiB that all processes together may keep while they price; a quarter of the machine's where None.
        preprocessing: of the images, as for `load_dataset`.
        own: a network of the user's that it trains on as well, by name.

    Raises:
        PlywiseError: on anything that the user can fix.
    """
    settings = settings or PPOSettings()
    checked_seed(settings.seed)
    check_rollouts(settings)
    limit_memory(memory)
    seen = seen_networks(networks, hold_out) if networks or own is None else ()
    data = dataset_for(seen, data, preprocessing) if seen else None
    asked = {
        "networks": list(seen),
        "data": data,
        "preprocessing": preprocessing.options(),
        "devices": list(devices),
        **dataclasses.asdict(settings),
    }
    if own is not None:
        asked["own"] = {"model": own.name, "data": own.data, "task": own_pricing(own).task, "weights": str(own.weights)}
    check_writable(out)
    with alone_in(out):
        check_run(out, asked)
        if (out / "agent" / "agent.json").exists():
            return RecipeAgent.load(out / "agent", CONTEXT_FEATURES, ROW_FEATURES)
        tables = price_networks(seen, data, devices=devices, preprocessing=preprocessing, own=own)
        write_atomically(out / RUN, f"{json.dumps(as_json(asked), indent=2, allow_nan=False)}\n".encode())
        return train(
            BatchedCompressionEnv(tables, DemandSampler(), settings.num_envs, settings.seed),
            settings,
            out / "agent",
            context_features=CONTEXT_FEATURES,
            recipe_features=ROW_FEATURES,
            tensorboard=out / "tensorboard",
        )


def check_rollouts(settings: PPOSettings) -> None:
    """Raises ConfigurationError where a rollout would not fit into the memory, hours before it is needed."""
    step = FLOAT_BYTES * (SLOTS * (len(ROW_FEATURES) + 1) + len(CONTEXT_FEATURES))
    needed, there = settings.num_envs * settings.n_steps * step, machine_memory()
    if needed > there / 2:
        most = int(there / 2 / (settings.n_steps * step))
        raise ConfigurationError(
            f"envs={settings.num_envs:,} take about {needed / GIB:,.1f} GiB for a rollout, more than half of the "
            f"machine's {there / GIB:.1f}; give at most {most:,}, such as --envs 128"
        )


def seen_networks(networks: Sequence[str], hold_out: Sequence[str]) -> tuple[str, ...]:
    """Returns the networks that the agent may see; raises ConfigurationError on names that are not known."""
    for name in (*networks, *hold_out):
        zoo_entry(name)
    strangers = sorted(set(hold_out) - set(networks))
    if strangers:
        raise ConfigurationError(f"hold_out names {', '.join(strangers)}, not among the networks {', '.join(networks)}")
    seen = tuple(dict.fromkeys(name for name in networks if name not in hold_out))
    if not seen:
        raise ConfigurationError("no network is left to train on; hold out fewer or name more")
    return seen


def check_run(out: Path, asked: dict[str, Any]) -> None:
    """Makes sure that a folder is empty, or holds the same run, finished or not; changes nothing.

    Raises:
        ConfigurationError: it holds another run or files that are not of a run.
        FileFormatError: its description of the run is damaged.
    """
    if not (out / RUN).exists():
        some = ", ".join(sorted(path.name for path in out.iterdir())[:5])
        if some:
            raise ConfigurationError(f"{out} holds other files ({some}) and no {RUN}; name a new or an empty folder")
        return
    try:
        there = json.loads((out / RUN).read_bytes())
        differing = [f"{key}: {there[key]!r} there, {asked[key]!r} now" for key in asked if there[key] != asked[key]]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise FileFormatError(f"{out / RUN} is damaged ({error!r}); name another folder or delete {out}") from error
    if differing:
        raise ConfigurationError(f"{out} holds another run ({'; '.join(differing)}); name another folder or delete it")


if __name__ == "__main__":
    with telling_mistakes():
        auto_cli(train_agent, as_positional=False, parser_class=OptionParser)
