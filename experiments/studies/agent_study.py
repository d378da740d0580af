"""Has the agent learned? Its plans against those of other methods, one exact score each, on networks never seen.

`python -m plywise.experiments.studies.agent_study` writes `experiments/results/agent_study.md`.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.agent.search.agent_search import SIDE_BY_SIDE, AgentSearch
from plywise.agent.search.greedy import Greedy
from plywise.agent.search.knapsack import Knapsack
from plywise.agent.search.random_search import RandomSearch
from plywise.agent.search.search_method import SearchMethod
from plywise.agent.search.uniform import Uniform
from plywise.env.exact_evaluator import ExactEvaluator
from plywise.env.execution.progress import tracked
from plywise.env.score.demand import Demand
from plywise.env.subject import Subject
from plywise.env.walk.observation import CONTEXT_FEATURES, ROW_FEATURES
from plywise.experiments.commands.study import study
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.demo import DIGITS_ZOO, HELD_OUT, SETTINGS
from plywise.experiments.train_agent import train_agent
from plywise.experiments.workbench.results_page import Page

SEEDS = (0, 1, 2)
STEPS = 300_000
"""More than the demo's: what is asked here is how well the agent can learn, not how soon."""

DEMANDS = {
    "storage 0.15": Demand(1.0, max_storage=0.15),
    "storage 0.10": Demand(1.0, max_storage=0.10),
    "storage 0.08, 2 points": Demand(2.0, max_storage=0.08),
    "energy 0.25": Demand(1.0, max_energy=0.25),
    "half a point, latency counts": Demand(0.5, max_storage=0.25, latency_weight=1.0),
    "storage counts four times": Demand(1.0, max_storage=0.15, storage_weight=1.0, energy_weight=0.25),
}

TRAINED, MANY = "trained agent", f", best of {SIDE_BY_SIDE} on paper"

Scores = dict[str, list[float]]


def main(out: Path = Path("runs/agent_study"), seeds: Sequence[int] = SEEDS) -> None:
    """Trains an agent for each seed, scores all methods and writes the page."""
    started = time.perf_counter()
    agents = {}
    for seed in seeds:
        settings = replace(SETTINGS, seed=seed, total_steps=STEPS)
        agents[seed] = train_agent(DIGITS_ZOO, HELD_OUT, out=out / f"seed{seed}", settings=settings)
    data = load_dataset("digits")
    subjects = [study(name, data).subject for name in HELD_OUT]
    scores, met = score_methods(subjects, agents)
    write_page(scores, met, subjects, time.perf_counter() - started)


def score_methods(subjects: Sequence[Subject], agents: dict[int, RecipeAgent]) -> tuple[Scores, Scores]:
    """Returns for each method its scores, and whether demands were met, over subjects, demands and seeds in order."""
    scores: Scores = {}
    met: Scores = {}
    cases = [(subject, demand, seed) for subject in subjects for demand in DEMANDS.values() for seed in agents]
    for subject, demand, seed in tracked(cases, "one exact score each"):
        untrained = RecipeAgent.untrained(len(CONTEXT_FEATURES), len(ROW_FEATURES), seed)
        methods: dict[str, SearchMethod] = {
            TRAINED: AgentSearch(agents[seed], side_by_side=1),
            "untrained agent": AgentSearch(untrained, side_by_side=1),
            "random": RandomSearch(),
            "uniform": Uniform(),
            "greedy": Greedy(),
            "knapsack": Knapsack(),
            TRAINED + MANY: AgentSearch(agents[seed]),
            "untrained agent" + MANY: AgentSearch(untrained),
        }
        for name, method in methods.items():
            outcome = method.search(ExactEvaluator(subject, demand), 1, seed).outcome
            scores.setdefault(name, []).append(outcome.score)
            met.setdefault(name, []).append(float(outcome.demand_met))
    return scores, met


def write_page(scores: Scores, met: Scores, subjects: Sequence[Subject], seconds: float) -> None:
    """Prints the table and writes it below `experiments/results`."""
    page = Page("agent_study", "python -m plywise.experiments.studies.agent_study", seconds)
    page.text(
        f"Agents of {STEPS:,} steps. Networks held out of training: "
        f"{', '.join(subject.network.name for subject in subjects)}. Demands: "
        f"{'; '.join(DEMANDS)}. Seeds {', '.join(map(str, SEEDS))}: {len(scores['random'])} cases a method, one exact "
        "score each on the validation split (higher is better). An agent's plan is one walk of its best choices; with "
        f"'{MANY[2:]}' it takes that many walks, as 'plywise compress' does, and the most promising is scored, which "
        "helps an agent that has learned nothing most. The difference is the trained agent's score minus the method's, "
        "case by case and with as many walks, with its standard error."
    )
    rows = []
    for name, values in scores.items():
        trained = TRAINED + MANY if name.endswith(MANY) else TRAINED
        gaps = [mine - other for mine, other in zip(scores[trained], values, strict=True)]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        mean = statistics.mean(gaps)
        rows.append(
            (
                name,
                f"{statistics.mean(values):.3f}",
                f"{statistics.median(values):.3f}",
                f"{100 * statistics.mean(met[name]):.0f} %",
                "" if name == trained else f"{mean:+.3f} ± {error:.3f} ({mean / max(error, 1e-9):+.1f} s.e.)",
            )
        )
    page.table(("method", "mean score", "median", "demands met", "trained minus this"), rows)
    knapsack = statistics.mean(scores["knapsack"])
    for name in (TRAINED, TRAINED + MANY):
        page.text(
            f"The mean score of the {name} is {100 * statistics.mean(scores[name]) / knapsack:.1f} % of the knapsack's."
        )
    page.write(Console())


if __name__ == "__main__":
    main()
