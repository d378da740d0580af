"""Training the agent with PPO under action masks (Schulman et al. 2017; Huang and Ontanon 2020)."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import VecEnv

from plywise.agent.learning.checkpoint import Checkpoint, CheckpointCallback, Resumable, check_settings
from plywise.agent.learning.policy import RecipePolicy
from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.agent.learning.tensorboard import TensorBoardCallback
from plywise.compressors.errors import ConfigurationError
from plywise.compressors.plain_values import as_number, as_whole
from plywise.env.execution.progress import Progress
from plywise.env.storage.timing_lock import pause, working

LEAST_LEARNING_RATE = 0.05
"""Share of the learning rate that is left at the end: at 0 the last rollouts would teach nothing."""


BOUNDS: Mapping[str, tuple[float, float]] = {
    "total_steps": (1, 10**12),
    "num_envs": (1, 10**6),
    "n_steps": (1, 10**5),
    "epochs": (1, 1000),
    "minibatch": (2, 10**9),
    "learning_rate": (1e-9, 0.1),  # beyond it, steps of Adam soon make weights that are no numbers
    "clip": (1e-6, 1.0),
    "entropy": (0.0, 100.0),
    "value": (0.0, 100.0),
    "gamma": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "max_grad_norm": (1e-6, 1e6),
    "hidden": (1, 4096),
    "seed": (0, 2**32 - 1),
}
"""Least and most of each setting; whole numbers where the least one is."""


@dataclass(frozen=True)
class PPOSettings:
    """How to train.

    Attributes:
        total_steps: environment steps, rounded up to whole rollouts.
        num_envs: environments side by side; must be the environment's own number.
        n_steps: steps of each environment in a rollout.
        epochs: passes over a rollout.
        minibatch: steps per update; must divide `num_envs * n_steps`.
        learning_rate: Adam's step size at the start; it decays linearly.
        clip: largest relative change of an action's probability that is rewarded.
        entropy: weight of the entropy bonus.
        value: weight of the value head's loss.
        gamma: discount; 1 as episodes are finite.
        gae_lambda: trade-off of bias and variance in the advantages.
        max_grad_norm: largest norm of a gradient.
        hidden: width of the policy's hidden layers.
        seed: of weights, actions and minibatches.
    """

    total_steps: int = 2_000_000
    num_envs: int = 256
    n_steps: int = 64
    epochs: int = 3
    minibatch: int = 2048
    learning_rate: float = 1e-3
    clip: float = 0.2
    entropy: float = 0.005
    value: float = 0.5
    gamma: float = 1.0
    gae_lambda: float = 0.95
    max_grad_norm: float = 0.5
    hidden: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            given, whole = getattr(self, name), isinstance(least, int)
            number = as_whole(given) if whole else as_number(given)
            if number is None or not least <= number <= most:
                raise ConfigurationError(
                    f"{name}={given!r} must be a {'whole ' * whole}number between {least:,} and {most:,}"
                )
            object.__setattr__(self, name, number)
        rollout = self.num_envs * self.n_steps
        if rollout % self.minibatch:
            raise ConfigurationError(f"minibatch={self.minibatch!r} must divide num_envs * n_steps = {rollout}")


def train(
    env: VecEnv,
    settings: PPOSettings,
    folder: Path,
    resume: bool = True,
    progress: bool = True,
    context_features: Sequence[str] = (),
    recipe_features: Sequence[str] = (),
    tensorboard: Path | None = None,
) -> RecipeAgent:
    """Trains an agent, or goes on with a killed run, or loads a finished one.

    A run that is killed at any moment and resumed ends with the same weights as one that is not.

    Args:
        env: batched environments with `action_masks`, `get_state` and `set_state`, freshly built.
        settings: how to train.
        folder: receives `policy.safetensors` and `agent.json`, `checkpoint.safetensors` while training, and
            `tensorboard/`.
        resume: go on from what is in `folder`; if False, that is deleted first.
        progress: show a bar with the time left and the mean score.
        context_features, recipe_features: names of the observation's features, kept with the agent.
        tensorboard: folder of the curves, `folder / "tensorboard"` where None.

    Raises:
        ConfigurationError: the folder holds a run with other settings, or `env` does not fit them.
        FileFormatError: the checkpoint or the finished agent cannot be read.
    """
    _check_env(env, settings, context_features, recipe_features)
    curves = folder / "tensorboard" if tensorboard is None else tensorboard
    if not resume:
        _delete_run(folder, curves)
    chosen = dataclasses.asdict(settings)
    if (folder / "agent.json").exists():
        finished = RecipeAgent.load(folder, context_features, recipe_features)
        check_settings(folder, finished.training, chosen)
        return finished
    model = _learn(env, settings, folder, curves, progress)
    assert isinstance(model.policy, RecipePolicy)
    agent = RecipeAgent(
        model.policy.scorer, tuple(context_features), tuple(recipe_features), chosen, model.num_timesteps
    )
    agent.save(folder)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return agent


class ProgressCallback(BaseCallback):
    """Moves the bar on and shows the mean score of the last rollout's plans."""

    def __init__(self, bar: Progress, scores: TensorBoardCallback) -> None:
        super().__init__()
        self.bar, self.scores = bar, scores
        self._note = ""

    def _on_step(self) -> bool:
        self.bar.update(self.num_timesteps, self._note)
        return True

    def _on_rollout_end(self) -> None:
        self._note = f"score {self.scores.score:.3f}"


class PauseCallback(BaseCallback):
    """Lets other processes time between two rollouts."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        pause()


def _learn(env: VecEnv, settings: PPOSettings, folder: Path, curves: Path, progress: bool) -> MaskablePPO:
    assert isinstance(env, Resumable), "the environment needs get_state and set_state"
    folder.mkdir(parents=True, exist_ok=True)
    path, chosen = folder / "checkpoint.safetensors", dataclasses.asdict(settings)
    checkpoint = Checkpoint.read(path, chosen) if path.exists() else None
    if not checkpoint:
        shutil.rmtree(curves, ignore_errors=True)
    board = TensorBoardCallback(curves, chosen, checkpoint.steps if checkpoint else None)
    model = _build(env, settings)
    board.take_logs(model)
    if checkpoint:
        checkpoint.restore(model, env, board)
    bar = Progress("training the agent", settings.total_steps, model.num_timesteps, progress)
    callbacks: list[BaseCallback] = [
        board,
        ProgressCallback(bar, board),
        CheckpointCallback(path, env, chosen, board),
        PauseCallback(),
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the scorer is small: a second thread waits more than it works
    with bar, working():
        try:
            model.learn(
                settings.total_steps - model.num_timesteps,
                CallbackList(callbacks),
                log_interval=None,  # type: ignore[arg-type]
                reset_num_timesteps=checkpoint is None,
            )
        finally:
            torch.set_num_threads(threads)
            board.close()
    return model


def _build(env: VecEnv, settings: PPOSettings) -> MaskablePPO:
    def learning_rate(remaining: float) -> float:
        return settings.learning_rate * max(remaining, LEAST_LEARNING_RATE)

    return MaskablePPO(
        RecipePolicy,
        env,
        learning_rate=learning_rate,
        n_steps=settings.n_steps,
        batch_size=settings.minibatch,
        n_epochs=settings.epochs,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip,
        ent_coef=settings.entropy,
        vf_coef=settings.value,
        max_grad_norm=settings.max_grad_norm,
        policy_kwargs={"hidden": settings.hidden},
        seed=settings.seed,
        device="cpu",
    )


def _check_env(env: VecEnv, settings: PPOSettings, context: Sequence[str], recipe: Sequence[str]) -> None:
    if env.num_envs != settings.num_envs:
        raise ConfigurationError(
            f"num_envs={settings.num_envs} but the environment has {env.num_envs}; build it with num_envs environments"
        )
    assert isinstance(env.observation_space, spaces.Dict)
    for name, features in (("context", context), ("recipes", recipe)):
        shape = env.observation_space[name].shape
        if features and (shape is None or len(features) != shape[-1]):
            raise ConfigurationError(f"{len(features)} names were given for the features of {name!r}, of shape {shape}")


def _delete_run(folder: Path, curves: Path) -> None:
    for name in ("agent.json", "policy.safetensors", "checkpoint.safetensors"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(curves, ignore_errors=True)
