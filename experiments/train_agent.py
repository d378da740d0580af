"""Trains an agent over a zoo of networks: `python experiments/train_agent.py --help`, or `plywise train --help`."""

import dataclasses
import json
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from jsonargparse import auto_cli

from plywise.agent.learning.ppo import PPOSettings, train
from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.env.costs.devices import HERE, open_device
from plywise.env.costs.latency import RoughLatencyWarning
from plywise.env.execution.progress import tracked
from plywise.env.prices.prices import PriceTable
from plywise.env.storage.cache import cache_folder
from plywise.env.storage.memory import limit_memory, share
from plywise.env.walk.demand_sampler import DemandSampler
from plywise.env.walk.observation import CONTEXT_FEATURES, ROW_FEATURES
from plywise.env.walk.vector_env import BatchedCompressionEnv
from plywise.experiments.commands.mistakes import telling_mistakes
from plywise.experiments.commands.options import OptionParser
from plywise.experiments.commands.study import check_seed, study
from plywise.experiments.data.dataset import Dataset
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.data.normalisation import Normalisation
from plywise.experiments.handover.run_folder import alone_in, check_writable
from plywise.experiments.networks.zoo import ZOO, trainable, untrained, zoo_entry

DIGITS_ZOO = tuple(name for name, entry in ZOO.items() if entry.dataset == "digits")

RUN = "run.json"
"""What the run in a folder was asked to do."""


def price_networks(
    networks: Sequence[str],
    data: str,
    seed: int = 0,
    devices: Sequence[str] = (HERE,),
    normalisation: Normalisation | None = None,
) -> list[PriceTable]:
    """Returns the price table of each network on each device, made by one process for each core.

    An interrupted run goes on where it stopped: tables and probes are kept as they come.
    """
    # A mistake should be told once, and before anything starts.
    dataset = load_dataset(data, normalisation=normalisation)
    for name in networks:
        trainable(name, dataset)
    for device in devices:
        open_device(device)
    slowest_first = sorted(networks, key=lambda name: _pass_seconds(name, dataset), reverse=True)  # no core idles
    pairs = [(name, device) for name in slowest_first for device in devices]
    processes = min(os.cpu_count() or 1, len(pairs))
    # joblib's processes need no guard around the caller's main module, and get one thread each.
    results = Parallel(n_jobs=processes, return_as="generator")(
        delayed(_price_quietly)(name, data, seed, device, share(processes), normalisation) for name, device in pairs
    )
    found = dict(zip(pairs, tracked(results, "training and pricing networks", len(pairs)), strict=True))
    rough = sum(varied for _, varied in found.values())
    if rough:
        warnings.warn(
            f"latencies of {rough} of {len(found)} networks vary much from one moment to the next; give the machine "
            f"less to do and delete {cache_folder() / 'latency.sqlite'} for better ones",
            RoughLatencyWarning,
            stacklevel=2,
        )
    return [found[name, device][0] for name in networks for device in devices]


def _price_quietly(
    name: str, data: str, seed: int, device: str, memory: float, normalisation: Normalisation | None = None
) -> tuple[PriceTable, bool]:
    """Returns a price table, and whether its latencies vary, which each of many processes would say many times."""
    with warnings.catch_warnings(record=True) as told:
        table = price_network(name, data, seed, device, memory, normalisation)
    for each in told:
        if each.category is not RoughLatencyWarning:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return table, any(each.category is RoughLatencyWarning for each in told)


@torch.inference_mode()
def _pass_seconds(name: str, dataset: Dataset) -> float:
    network, images = untrained(name).eval(), torch.zeros(256, *dataset.input_shape)
    network(images)
    started = time.perf_counter()
    network(images)
    return time.perf_counter() - started


def price_network(
    name: str,
    data: str,
    seed: int = 0,
    device: str = HERE,
    memory: float | None = None,
    normalisation: Normalisation | None = None,
) -> PriceTable:
    """Returns the price table of one network on a device; `memory` as for `limit_memory`."""
    limit_memory(memory)
    dataset = load_dataset(data, normalisation=normalisation)
    return study(name, dataset, seed=seed, progress=False, latency=open_device(device)).subject.table


def train_agent(
    networks: Sequence[str] = DIGITS_ZOO,
    hold_out: Sequence[str] = (),
    data: str = "digits",
    out: Path = Path("runs/agent"),
    settings: PPOSettings | None = None,
    devices: Sequence[str] = (HERE,),
    memory: float | None = None,
    normalisation: Normalisation | None = None,
) -> RecipeAgent:
    """Prices the networks, then trains one agent over all of them and over sampled demands.

    Args:
        networks: names of the zoo.
        hold_out: names among them that the agent must not see.
        data: dataset that the networks run on.
        out: receives `agent/` and `tensorboard/`; an unfinished run in it goes on, a finished one is loaded.
        settings: of PPO.
        devices: where the networks will run, as for `open_device`; the agent learns for all of them.
        memory: GiB that all processes together may keep while they price; a quarter of the machine's where None.
        normalisation: of the images, as for `load_dataset`.

    Raises:
        PlywiseError: on anything that the user can fix.
    """
    settings = settings or PPOSettings()
    check_seed(settings.seed)
    limit_memory(memory)
    seen = seen_networks(networks, hold_out)
    asked = {
        "networks": list(seen),
        "data": data,
        "normalisation": normalisation and normalisation.report(),
        "devices": list(devices),
        **dataclasses.asdict(settings),
    }
    check_writable(out)
    with alone_in(out):
        check_run(out, asked)
        if (out / "agent" / "agent.json").exists():
            return RecipeAgent.load(out / "agent", CONTEXT_FEATURES, ROW_FEATURES)
        tables = price_networks(seen, data, devices=devices, normalisation=normalisation)
        write_atomically(out / RUN, f"{json.dumps(asked, indent=2)}\n".encode())
        return train(
            BatchedCompressionEnv(tables, DemandSampler(), settings.num_envs, settings.seed),
            settings,
            out / "agent",
            context_features=CONTEXT_FEATURES,
            recipe_features=ROW_FEATURES,
            tensorboard=out / "tensorboard",
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
