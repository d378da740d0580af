"""The state of a training run: one file from which a killed run goes on exactly as if it had not been killed.

Weights, Adam's moments, the generators, the last observation and the environment's state are the tensors of one
safetensors file; counters and everything else are JSON in its header. One file cannot be half of a pair.
"""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback

from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.compressors.tensor_file import TensorFile

Arrays = dict[str, NDArray[Any]]

FILE = TensorFile("checkpoint/2", "delete it to start the run anew")
CHECKPOINT_SECONDS = 10.0
HEADER = {"settings", "steps", "updates", "random", "env", "monitor"}


@runtime_checkable
class Resumable(Protocol):
    """The environments of a run: they can write down where they stand and go back to it."""

    def get_state(self) -> dict[str, Any]:
        """Returns arrays and values that JSON can hold, by name."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes back to a state that `get_state` returned."""


class CheckpointCallback(BaseCallback):
    """Saves the run between two rollouts, where no half-used buffer has to be kept.

    Args:
        path: the checkpoint file.
        env: the training environments.
        settings: what the run was started with.
        monitor: keeps statistics across rollouts, and so is saved and restored with the run.
    """

    def __init__(self, path: Path, env: Resumable, settings: Mapping[str, Any], monitor: Resumable) -> None:
        super().__init__()
        self.path, self.env, self.settings, self.monitor = path, env, settings, monitor
        self._written = time.monotonic()

    def _on_rollout_start(self) -> None:
        if time.monotonic() - self._written >= CHECKPOINT_SECONDS:
            assert isinstance(self.model, MaskablePPO)
            write_checkpoint(self.path, self.model, self.env, self.settings, self.monitor)
            self._written = time.monotonic()

    def _on_step(self) -> bool:
        return True


def write_checkpoint(
    path: Path, model: MaskablePPO, env: Resumable, settings: Mapping[str, Any], monitor: Resumable
) -> None:
    """Writes the state of a run that stands between two rollouts."""
    arrays = _optimiser_arrays(model)
    arrays |= {f"policy.{name}": tensor.numpy() for name, tensor in model.policy.state_dict().items()}
    assert isinstance(model._last_obs, dict)
    assert model._last_episode_starts is not None
    arrays |= {f"observation.{name}": array for name, array in model._last_obs.items()}
    arrays["episode_starts"] = model._last_episode_starts
    random_arrays, random_state = _random_state()
    state = env.get_state()
    arrays |= random_arrays | {f"env.{name}": item for name, item in state.items() if isinstance(item, np.ndarray)}
    header = {
        "settings": dict(settings),
        "steps": model.num_timesteps,
        "updates": model._n_updates,
        "random": random_state,
        "env": {name: item for name, item in state.items() if not isinstance(item, np.ndarray)},
        "monitor": monitor.get_state(),
    }
    FILE.write(path, arrays, header)


@dataclass(frozen=True)
class Checkpoint:
    """What `write_checkpoint` wrote.

    Attributes:
        path: where it was read.
        arrays: weights, moments, generators, observation and environments.
        header: counters, settings and the rest.
    """

    path: Path
    arrays: Arrays
    header: dict[str, Any]

    @classmethod
    def read(cls, path: Path, settings: Mapping[str, Any]) -> Self:
        """Reads the file; executes no code.

        Raises:
            ConfigurationError: the run was started with other settings.
            FileFormatError: the file is damaged or of another version.
        """
        arrays, header = FILE.read(path)
        if header.keys() != HEADER:
            raise FileFormatError(f"{path} is no whole checkpoint; {FILE.remedy}")
        check_settings(path.parent, header["settings"], settings)
        return cls(path, arrays, header)

    @property
    def steps(self) -> int:
        """Environment steps done."""
        return int(self.header["steps"])

    def restore(self, model: MaskablePPO, env: Resumable, monitor: Resumable) -> None:
        """Puts a freshly built run where the saved one stood; raises FileFormatError if it does not fit."""
        try:
            _restore_model(model, self.arrays, self.header)
            env.set_state(_below("env.", self.arrays) | self.header["env"])
            monitor.set_state(self.header["monitor"])
            # Last: building the networks and the environments draws random numbers.
            _restore_random_state(self.arrays, self.header["random"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise FileFormatError(
                f"{self.path} does not fit this run ({error!r}): networks, demands or Plywise itself have changed "
                "since; delete it, or train in another folder"
            ) from error


def check_settings(folder: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises ConfigurationError, naming the differences, where a folder holds a run with other settings."""
    differing = [
        f"{name}: {stored.get(name)!r} there, {given.get(name)!r} now"
        for name in sorted(stored.keys() | given.keys())
        if stored.get(name) != given.get(name)
    ]
    if differing:
        raise ConfigurationError(
            f"{folder} holds a run with other settings ({'; '.join(differing)}); "
            "choose another folder, delete it, or train without resuming"
        )


def _below(prefix: str, arrays: Arrays) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _optimiser_arrays(model: MaskablePPO) -> Arrays:
    states = model.policy.optimizer.state_dict()["state"]
    return {f"adam.{index}.{name}": tensor.numpy() for index, state in states.items() for name, tensor in state.items()}


def _restore_model(model: MaskablePPO, arrays: Arrays, header: Mapping[str, Any]) -> None:
    weights = {name: torch.from_numpy(array) for name, array in _below("policy.", arrays).items()}
    model.policy.load_state_dict(weights)
    states: dict[int, dict[str, torch.Tensor]] = {}
    for key, array in _below("adam.", arrays).items():
        index, name = key.split(".")
        states.setdefault(int(index), {})[name] = torch.from_numpy(array)
    optimiser = model.policy.optimizer
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    model._last_obs = _below("observation.", arrays)
    model._last_episode_starts = arrays["episode_starts"]
    model.num_timesteps, model._n_updates = int(header["steps"]), int(header["updates"])


def _random_state() -> tuple[Arrays, dict[str, Any]]:
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    assert name == "MT19937"
    arrays: Arrays = {"random.numpy": np.asarray(keys), "random.torch": torch.get_rng_state().numpy()}
    version, words, python_gauss = random.getstate()
    return arrays, {
        "numpy": [int(position), int(has_gauss), float(gauss)],
        "python": [version, list(words), python_gauss],
    }


def _restore_random_state(arrays: Arrays, state: Mapping[str, Any]) -> None:
    version, words, python_gauss = state["python"]
    random.setstate((version, tuple(words), python_gauss))
    np.random.set_state(("MT19937", arrays["random.numpy"], *state["numpy"]))
    torch.set_rng_state(torch.from_numpy(arrays["random.torch"]))
