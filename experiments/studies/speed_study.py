"""How fast the walk, the learning and the surrogate are: `python -m plywise.experiments.studies.speed_study`."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from plywise.agent.learning.ppo import PPOSettings, train
from plywise.env.score.surrogate import Surrogate
from plywise.env.walk.demand_sampler import DemandSampler
from plywise.env.walk.synthetic import synthetic_table
from plywise.env.walk.vector_env import BatchedCompressionEnv
from plywise.experiments.workbench.results_page import Page

ENVS = 256
SLOTS = (32, 82)
"""Recipes a layer: what menus were once cut to, and what ResNet-20's largest have."""

TABLES = 12
STEPS = 200
LEARNING_STEPS = 163_840
"""Ten rollouts, with one set of pictures at the end: training draws them every twentieth."""
PLANS, PLAN_LAYERS, BATCH = 200_000, 20, 5_000
SEEN = 40
"""Plans that the surrogate has learned from, at most."""


def main() -> None:
    """Measures both and writes the page."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    batches = {slots: walking(slots) for slots in SLOTS}
    learning = {slots: learning_speed(slots) for slots in SLOTS}
    page = Page("speed_study", "python -m plywise.experiments.studies.speed_study", time.perf_counter() - started)
    page.text(
        f"One core (one thread), {ENVS} environments side by side, {TABLES} synthetic networks of 6 to 60 layers with "
        f"{' or '.join(map(str, SLOTS))} recipes a layer. Walking: random legal actions. Learning: PPO with rollouts, "
        f"optimiser and TensorBoard. Surrogate: costs, drops and spreads of {PLANS:,} random plans of {PLAN_LAYERS} "
        f"layers, {BATCH:,} at a time, by the processor's seconds; scored for real are the plans that it has learned "
        "from before."
    )
    rows = []
    for slots in SLOTS:
        low, median, high = (ENVS / seconds for seconds in np.percentile(batches[slots], (75, 50, 25)))
        rows += [
            (f"walking, {slots} recipes, steps", f"{median:,.0f}", f"{low:,.0f} to {high:,.0f}"),
            (f"learning included, {slots} recipes, steps", f"{learning[slots]:,.0f}", "one run"),
        ]
    page.table(
        ("what", "a second", "quartiles"),
        [
            *rows,
            ("surrogate, plans, none scored for real", f"{surrogate_speed(0):,.0f}", "one run"),
            (f"surrogate, plans, {SEEN} scored for real", f"{surrogate_speed(SEEN):,.0f}", "one run"),
        ],
    )
    page.write(Console())


def environment(slots: int) -> BatchedCompressionEnv:
    """Returns the environment that is measured, with so many recipes a layer."""
    rng = np.random.default_rng(0)
    tables = [synthetic_table(rng, int(n), slots, name=f"synthetic-{n:.0f}") for n in np.linspace(6, 60, TABLES)]
    return BatchedCompressionEnv(tables, DemandSampler(), ENVS, 0)


def walking(slots: int) -> list[float]:
    """Returns the seconds of each batch of steps."""
    env, rng = environment(slots), np.random.default_rng(0)
    env.reset()
    taken = []
    for _ in range(STEPS):
        masks = env.walks.outlook.masks
        actions = (masks * rng.random(masks.shape)).argmax(1)
        start = time.perf_counter()
        env.step(actions)
        taken.append(time.perf_counter() - start)
    return taken


def learning_speed(slots: int) -> float:
    """Returns environment steps a second while learning, start-up included."""
    settings = PPOSettings(total_steps=LEARNING_STEPS, num_envs=ENVS)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        train(environment(slots), settings, Path(folder), progress=False)
        return LEARNING_STEPS / (time.perf_counter() - start)


def surrogate_speed(seen: int) -> float:
    """Returns how many plans a surrogate that has learned from `seen` plans estimates in a second of the processor."""
    generator = np.random.default_rng(0)
    table = synthetic_table(generator, PLAN_LAYERS)
    surrogate = Surrogate(table)
    plans = np.stack([generator.choice(np.flatnonzero(legal), PLANS) for legal in table.legal], 1)
    for place in range(seen):
        surrogate.observe(plans[place].tolist(), float(generator.uniform(0.0, 20.0)))
    started = time.process_time()  # numpy may use both cores
    for batch in np.split(plans, PLANS // BATCH):
        surrogate.estimate(batch)
    return PLANS / (time.process_time() - started)


if __name__ == "__main__":
    main()
