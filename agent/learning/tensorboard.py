"""What a training run shows in TensorBoard, and what each of its curves means."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

PICTURE_ROLLOUTS = 20
"""Rollouts between two pictures of what is chosen where."""
MOST_NETWORKS = 16
"""Networks with curves and pictures of their own: the first so many that finish an episode."""

PLAN_METRICS = {
    "score": "score",
    "drop": "drop",
    "storage": "storage",
    "latency": "latency",
    "energy": "energy",
    "met": "demand_met",
}
"""Names of curves and where a finished plan holds their value."""

LAYOUT: dict[str, dict[str, list[Any]]] = {
    "plans": {
        "score": ["Multiline", ["plan/score"]],
        "ceilings": ["Multiline", ["plan/met", "plan/broken"]],
        "costs, shares of the original's": ["Multiline", ["plan/storage", "plan/latency", "plan/energy"]],
        "points lost": ["Multiline", ["plan/drop"]],
    },
    "learning": {
        "updates": ["Multiline", ["train/approx_kl", "train/clip_fraction"]],
        "choices and values": ["Multiline", ["train/entropy_loss", "train/explained_variance"]],
    },
    "networks": {name: ["Multiline", [f"network/.*/{name}"]] for name in PLAN_METRICS},
}
"""Charts of TensorBoard's tab of custom scalars: plans first, what learning does, then the networks side by side."""

_ACCURACY = "estimated accuracy drop of finished plans, percentage points"
_MET = "share of finished plans that hold every ceiling of their demand"
_SCORE = "mean score of finished plans: weighted log gains less penalties for broken ceilings and lost accuracy"
EXPLANATIONS: dict[str, tuple[str, str]] = {
    "rollout/return": ("mean sum of shaped rewards of the episodes that ended", "rises, then flattens"),
    "rollout/length": ("mean steps of an episode: layers of the network", "no trend: it only mirrors the networks"),
    "rollout/episodes": ("episodes that ended in this rollout", "no trend"),
    "rollout/steps_per_second": ("environment steps a second, learning included", "steady"),
    "plan/score": (_SCORE, "rises; the figure to compare runs by"),
    "plan/drop": (_ACCURACY, "falls, or settles below the demanded ceiling"),
    "plan/storage": ("storage of finished plans as a share of the original's", "falls towards the ceilings"),
    "plan/latency": ("latency of finished plans as a share of the original's", "falls towards the ceilings"),
    "plan/energy": ("energy of finished plans as a share of the original's", "falls towards the ceilings"),
    "plan/met": (_MET, "rises to 0.7 or more: choices are drawn, not the best ones, and many demands are tight"),
    "plan/broken": ("share of finished plans that break at least one ceiling", "falls below 0.3, likewise"),
    "train/approx_kl": (
        "how far one update moves the policy (Kullback-Leibler divergence)",
        "0.002 to 0.03, then falls with the learning rate",
    ),
    "train/clip_fraction": ("share of samples whose update was clipped", "up to 0.2, then towards 0 likewise"),
    "train/clip_range": ("PPO's clipping of the probability ratio", "constant: a setting"),
    "train/entropy_loss": (
        "minus the mean entropy of the choice, in nats",
        "rises slowly towards 0; a jump is a collapse",
    ),
    "train/explained_variance": (
        "share of the returns' variance that the value head explains",
        "0 to 0.3: rewards are shaped by what the prices promise, and what is left depends on draws still to come",
    ),
    "train/learning_rate": ("Adam's step size", "falls linearly: a setting"),
    "train/loss": ("the last minibatch's total loss", "no target: see its parts"),
    "train/policy_gradient_loss": ("PPO's clipped surrogate", "slightly negative, towards 0"),
    "train/value_loss": ("squared error of the value head", "falls"),
    "network/<name>/score": (_SCORE + ", this network alone", "rises"),
    "network/<name>/drop": (_ACCURACY + ", this network alone", "as plan/drop"),
    "network/<name>/storage": ("storage as a share of this network's original", "as plan/storage"),
    "network/<name>/latency": ("latency as a share of this network's original", "as plan/latency"),
    "network/<name>/energy": ("energy as a share of this network's original", "as plan/energy"),
    "network/<name>/met": (_MET + ", this network alone", "as plan/met"),
    "choices/<name>": (
        "picture: how often each technique was chosen at each layer of the network since the last picture",
        "from even columns to a pattern of bright and dark fields",
    ),
}
"""Meaning of every tag and what a good curve looks like; `<name>` stands for a network."""


def guide() -> str:
    """Returns the explanation of every tag as a Markdown table."""
    rows = (f"| `{tag}` | {meaning} | {good} |" for tag, (meaning, good) in EXPLANATIONS.items())
    return "\n".join(["| tag | meaning | what good looks like |", "|---|---|---|", *rows])


def explained_as(tag: str) -> str:
    """Returns the key of `EXPLANATIONS` that explains a tag; raises KeyError where none does."""
    key = tag
    if tag.startswith("network/"):
        key = f"network/<name>/{tag.rpartition('/')[2]}"
    elif tag.startswith("choices/"):
        key = "choices/<name>"
    EXPLANATIONS[key]
    return key


class ScalarWriter(KVWriter):
    """Hands the scalars of Stable-Baselines3's logger to TensorBoard; its own writer cannot resume a run."""

    def __init__(self, writer: SummaryWriter) -> None:
        self.writer = writer

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Writes all values that are not excluded from TensorBoard."""
        for tag, value in key_values.items():
            if "tensorboard" not in (key_excluded[tag] or ()):
                self.writer.add_scalar(tag, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self.writer.close()


@dataclass
class Choices:
    """How often each technique was chosen at each layer of one network.

    Attributes:
        layers: the network's layers.
        plans: plans counted.
        counts: by technique, the times it was chosen at each layer.
    """

    layers: tuple[str, ...]
    plans: int
    counts: dict[str, list[int]]

    def add(self, recipes: Iterable[str]) -> None:
        """Counts one plan."""
        self.plans += 1
        for position, recipe in enumerate(recipes):
            for technique in recipe.split(" + "):
                name = technique.partition("(")[0]
                self.counts.setdefault(name, [0] * len(self.layers))[position] += 1

    def shares(self) -> tuple[list[str], NDArray[np.float64]]:
        """Returns the techniques' names and the shares of plans that used them, `(layers, techniques)`."""
        names = sorted(self.counts)
        return names, np.array([self.counts[name] for name in names]).T / self.plans

    def picture(self, network: str) -> Figure:
        """Draws the shares, one row per layer."""
        names, shares = self.shares()
        # Margins in inches from the longest names: letting matplotlib find them takes several times as long as drawing.
        left, below = (0.3 + 0.085 * max(map(len, labels), default=0) for labels in (self.layers, names))
        inner = 0.4 * len(names), 0.2 * len(self.layers)
        width, height = left + inner[0] + 1.0, below + inner[1] + 0.4
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((left / width, below / height, inner[0] / width, inner[1] / height))
        image = axes.imshow(shares, vmin=0.0, vmax=1.0, aspect="auto", cmap="viridis")
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=10)
        axes.set_yticks(range(len(self.layers)), self.layers, fontsize=10)
        axes.set_title(f"{network}: {self.plans} plans", fontsize=10)
        bar = figure.add_axes((1.0 - 0.7 / width, below / height, 0.15 / width, inner[1] / height))
        figure.colorbar(image, cax=bar, label="share of plans")
        return figure


class TensorBoardCallback(BaseCallback):
    """Writes curves after every rollout and pictures after every twentieth.

    Args:
        folder: where the event files go.
        settings: the run's settings, shown as its hyperparameters.
        resumed_at: steps done before this process, None for a new run. Later entries of a killed process are dropped.
    """

    def __init__(self, folder: Path, settings: Mapping[str, int | float], resumed_at: int | None) -> None:
        super().__init__()
        self.settings, self.resumed_at = settings, resumed_at
        purge = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(folder, purge_step=purge)
        self.score = float("nan")
        self._choices: dict[str, Choices] = {}
        self._episodes: list[dict[str, Any]] = []
        self._plans: list[dict[str, Any]] = []
        self._clock = time.monotonic()

    def get_state(self) -> dict[str, Any]:
        """Returns the counts since the last pictures, as JSON can hold them."""
        return {name: [list(item.layers), item.plans, item.counts] for name, item in self._choices.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes up the counts of a killed process."""
        self._choices = {name: Choices(tuple(item[0]), item[1], item[2]) for name, item in state.items()}

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()

    def take_logs(self, model: BaseAlgorithm) -> None:
        """Sends what a model logs here; before it learns, or it makes a folder of its own that nobody deletes."""
        model.set_logger(Logger(None, [ScalarWriter(self._writer)]))

    def _init_callback(self) -> None:
        if self.resumed_at is None:
            self._write_settings()

    def _write_settings(self) -> None:
        # Not `add_hparams`: it opens a second run. The same keys in every run, as the first one seen defines the table.
        metrics = {f"plan/{name}": 0.0 for name in PLAN_METRICS}
        assert self._writer.file_writer is not None
        for summary in hparams(dict(self.settings), metrics):
            self._writer.file_writer.add_summary(summary)
        self._writer.add_text("guide", guide(), 0)
        self._writer.add_custom_scalars(LAYOUT)

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        ended = [infos[index] for index in np.flatnonzero(self.locals["dones"])]
        self._episodes += [info["episode"] for info in ended]
        self._plans += [info["plan"] for info in ended]
        return True

    def _on_rollout_end(self) -> None:
        now = time.monotonic()
        self._record("rollout/steps_per_second", self._rollout_steps / (now - self._clock))
        self._clock = now
        self._record("rollout/episodes", len(self._episodes))
        if self._episodes:
            self._record_episodes()
        self._episodes, self._plans = [], []

    def _record_episodes(self) -> None:
        self._record("rollout/return", np.mean([episode["r"] for episode in self._episodes]))
        self._record("rollout/length", np.mean([episode["l"] for episode in self._episodes]))
        for metric, key in PLAN_METRICS.items():
            self._record(f"plan/{metric}", np.mean([plan[key] for plan in self._plans]))
        self._record("plan/broken", np.mean([not plan["demand_met"] for plan in self._plans]))
        self.score = float(np.mean([plan["score"] for plan in self._plans]))
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for plan in self._plans:
            groups[plan["network"]].append(plan)
        for network, plans in groups.items():
            self._record_network(network, plans)

    def _record_network(self, network: str, plans: list[dict[str, Any]]) -> None:
        if network not in self._choices and len(self._choices) == MOST_NETWORKS:
            return
        for metric, key in PLAN_METRICS.items():
            self._record(f"network/{network}/{metric}", np.mean([plan[key] for plan in plans]))
        choices = self._choices.setdefault(network, Choices(tuple(plans[0]["layers"]), 0, {}))
        for plan in plans:
            choices.add(plan["recipes"])

    def _record(self, tag: str, value: float | np.floating[Any]) -> None:
        explained_as(tag)
        self.logger.record(tag, value)

    def _on_rollout_start(self) -> None:
        # Here and not at the end of a rollout, as the losses of the update in between belong to the same step.
        if self.model.num_timesteps > (self.resumed_at or 0):
            self.logger.dump(self.model.num_timesteps)
            if self.model.num_timesteps // self._rollout_steps % PICTURE_ROLLOUTS == 0:
                self._write_pictures()

    def _on_training_end(self) -> None:
        self.logger.dump(self.model.num_timesteps)
        self._write_pictures()
        self._writer.flush()

    def _write_pictures(self) -> None:
        for network, choices in self._choices.items():
            if choices.plans:
                figure = choices.picture(network)
                self._writer.add_figure(f"choices/{network}", figure, self.model.num_timesteps, close=False)
                choices.plans, choices.counts = 0, {}

    @property
    def _rollout_steps(self) -> int:
        return int(self.settings["num_envs"] * self.settings["n_steps"])
