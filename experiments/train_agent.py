"""Trains an agent over a zoo of networks: `python experiments/train_agent.py --help`, or `plywise train --help`."""

import os
from collections.abc import Sequence
from pathlib import Path

from joblib import Parallel, delayed
from jsonargparse import auto_cli

from plywise.agent.ppo import PPOSettings, train
from plywise.agent.recipe_agent import RecipeAgent
from plywise.compressors.errors import ConfigurationError
from plywise.env.demand_sampler import DemandSampler
from plywise.env.observation import CONTEXT_FEATURES, ROW_FEATURES
from plywise.env.prices import PriceTable
from plywise.env.vector_env import BatchedCompressionEnv
from plywise.experiments.datasets import load_dataset
from plywise.experiments.progress import tracked
from plywise.experiments.study import study
from plywise.experiments.zoo import ZOO

DIGITS_ZOO = tuple(name for name, entry in ZOO.items() if entry.dataset == "digits")


def price_networks(networks: Sequence[str], data: str, seed: int = 0) -> list[PriceTable]:
    """Returns the price table of each network, made by one process for each core.

    An interrupted run goes on where it stopped: tables and probes are kept as they come.
    """
    load_dataset(data)  # a mistake in its name should be told once, and before anything starts
    # joblib's processes need no guard around the caller's main module, and get one thread each.
    results = Parallel(n_jobs=min(os.cpu_count() or 1, len(networks)), return_as="generator")(
        delayed(_price)(name, data, seed) for name in networks
    )
    return list(tracked(results, "training and pricing networks", len(networks)))


def _price(name: str, data: str, seed: int) -> PriceTable:
    return study(name, load_dataset(data), seed=seed, progress=False).subject.table


def train_agent(
    networks: Sequence[str] = DIGITS_ZOO,
    hold_out: Sequence[str] = (),
    data: str = "digits",
    out: Path = Path("runs/agent"),
    settings: PPOSettings | None = None,
) -> RecipeAgent:
    """Prices the networks, then trains one agent over all of them and over sampled demands.

    Args:
        networks: names of the zoo.
        hold_out: names among them that the agent must not see.
        data: dataset that the networks run on.
        out: receives `agent/` and `tensorboard/`; an unfinished run in it goes on, a finished one is loaded.
        settings: of PPO.

    Raises:
        PlywiseError: on anything that the user can mend.
    """
    strangers = sorted(set(hold_out) - set(networks))
    if strangers:
        raise ConfigurationError(f"hold_out names {', '.join(strangers)}, not among the networks {', '.join(networks)}")
    seen = [name for name in networks if name not in hold_out]
    if not seen:
        raise ConfigurationError("no network is left to train on; hold out fewer or name more")
    settings = settings or PPOSettings()
    env = BatchedCompressionEnv(price_networks(seen, data), DemandSampler(), settings.num_envs, settings.seed)
    return train(
        env,
        settings,
        out / "agent",
        context_features=CONTEXT_FEATURES,
        recipe_features=ROW_FEATURES,
        tensorboard=out / "tensorboard",
    )


if __name__ == "__main__":
    auto_cli(train_agent, as_positional=False)
