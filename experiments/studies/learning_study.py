"""How soon an agent is of use: `python -m plywise.experiments.studies.learning_study`, from nothing, on a new network.

Needs ResNet-20 and its images, see `study_files`.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console

from plywise.agent.learning.ppo import PPOSettings, train
from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.agent.search.agent_search import AgentSearch
from plywise.agent.search.knapsack import Knapsack
from plywise.agent.search.search_method import SearchMethod
from plywise.env.prices.prices import PriceTable
from plywise.env.prices.pricing import Pricer
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import SurrogateEvaluator
from plywise.env.walk.demand_sampler import DemandSampler
from plywise.env.walk.observation import CONTEXT_FEATURES, ROW_FEATURES
from plywise.env.walk.vector_env import BatchedCompressionEnv
from plywise.experiments.commands.study import study_network
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.networks.model_loading import load_model
from plywise.experiments.studies.price_check import fresh_cache
from plywise.experiments.workbench.parts import Parts
from plywise.experiments.workbench.results_page import Page
from plywise.experiments.workbench.study_files import resnet_files

SETTINGS = PPOSettings(total_steps=60_000, num_envs=128)
DEMANDS = {
    "storage 0.15": Demand(1.0, max_storage=0.15),
    "storage 0.10": Demand(1.0, max_storage=0.10),
    "storage 0.08, 2 points": Demand(2.0, max_storage=0.08),
    "latency 0.75, storage 0.2": Demand(1.0, max_storage=0.2, max_latency=0.75),
    "latency counts": Demand(1.0, max_storage=0.25, latency_weight=1.0),
}
SEEDS = (0, 1, 2)


def main() -> None:
    """Measures and writes the page."""
    watch = Parts(time.perf_counter)
    with fresh_cache():
        table = priced(watch)
    agents = []
    for seed in SEEDS:
        with watch("learning"), tempfile.TemporaryDirectory() as folder:
            agents.append(learned(table, seed, Path(folder)))
    total = sum(watch.seconds.values())
    page = Page("learning_study", "python -m plywise.experiments.studies.learning_study", total)
    page.text(
        f"ResNet-20 on CIFAR-10, nothing known before, as many threads as torch takes: {total:.0f} s to an agent of "
        f"{SETTINGS.total_steps:,} steps that has learned on this network alone. Seconds on the clock:"
    )
    page.table(
        ("part", "seconds", "share"),
        [(part, f"{seconds:.0f}", f"{100 * seconds / total:.0f} %") for part, seconds in watch.seconds.items()],
    )
    page.text(
        "What it has learned, on paper (the price table; higher is better): one walk of its best choices for each "
        f"demand, mean of {len(SEEDS)} seeds with their spread, against an agent that has learned nothing and the "
        "knapsack, which reads the same table:"
    )
    page.table(("demand", "agent", "untrained", "knapsack"), list(_rows(table, agents)))
    page.write(Console())


def priced(watch: Parts) -> PriceTable:
    """Returns the price table of the network."""
    weights, images = resnet_files()
    dataset = load_dataset(images)
    network = load_model("resnet20", weights, dataset)
    with watch("calibration"):
        subject = study_network(network, "resnet20", dataset, progress=False).subject
    with watch("latencies"):
        pricer = Pricer(subject.bank, subject.whole)
        subject.latency.milliseconds(pricer.every_chain(), progress=False)
    with watch("compressing layers, sensitivities, trial plans"):
        return subject.price()


def learned(table: PriceTable, seed: int, folder: Path) -> RecipeAgent:
    """Returns an agent that has learned on one network."""
    settings = replace(SETTINGS, seed=seed)
    env = BatchedCompressionEnv([table], DemandSampler(), settings.num_envs, seed)
    return train(env, settings, folder, progress=False, context_features=CONTEXT_FEATURES, recipe_features=ROW_FEATURES)


def _rows(table: PriceTable, agents: list[RecipeAgent]) -> Iterator[tuple[str, ...]]:
    for name, demand in DEMANDS.items():
        untrained = [RecipeAgent.untrained(len(CONTEXT_FEATURES), len(ROW_FEATURES), seed) for seed in SEEDS]
        found = [[_score(AgentSearch(each, 1), table, demand) for each in group] for group in (agents, untrained)]
        shown = (f"{mean(scores):.3f} ± {stdev(scores):.3f}" for scores in found)
        yield name, *shown, f"{_score(Knapsack(), table, demand):.3f}"


def _score(method: SearchMethod, table: PriceTable, demand: Demand) -> float:
    return method.search(SurrogateEvaluator(table, demand), 1, 0).outcome.score


if __name__ == "__main__":
    main()
