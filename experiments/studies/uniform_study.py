"""Is what a search hands over ever worse than one recipe for all layers?

`python -m plywise.experiments.studies.uniform_study` writes `experiments/results/uniform_study.md`. It takes the demo's
agent (`make demo` trains one), and ResNet-20 with its images, see `study_files`.
"""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from plywise.agent.search.agent_search import AgentSearch
from plywise.agent.search.methods import SEARCH_METHODS
from plywise.agent.search.search_method import UNIFORM_SCORES, SearchMethod, SearchResult
from plywise.agent.search.uniform_plans import uniform_plans
from plywise.env.exact_evaluator import ExactEvaluator
from plywise.env.execution.progress import tracked
from plywise.env.score.demand import Demand
from plywise.env.score.score import Outcome
from plywise.env.subject import Subject
from plywise.experiments.commands.study import study
from plywise.experiments.compress_model import load_agent
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.workbench.results_page import Page
from plywise.experiments.workbench.study_files import resnet_files

STORAGE = (0.06, 0.08, 0.10, 0.15)
LATENCY = {"resnet20": (0.52, 0.6, 0.75), "digits-vit": (0.9, 0.95, 1.0), "digits-mobilenet": (0.9, 0.95, 1.0)}
"""Ceilings by network. Integers pay on ResNet-20; on networks as small as the digits', held out of the demo's agent,
they do not."""

BUDGET = 8
METHODS = ("knapsack", "greedy", "random")


def main(agent: Path = Path("runs/demo/agent")) -> None:
    """Scores all methods and writes the page."""
    started = time.perf_counter()
    methods = {"agent": AgentSearch(load_agent(agent)), **{name: SEARCH_METHODS[name] for name in METHODS}}
    tables: dict[str, list[tuple[str, ...]]] = {}
    below = same = cases = 0
    for subject in _subjects():
        name = f"{subject.network.name}, {subject.accuracy:.2f} % on {len(subject.validation)} validation images"
        for demand in tracked(list(demands(subject)), subject.network.name):
            best, recipe = best_uniform(subject, demand)
            results = [search(method, subject, demand) for method in methods.values()]
            found = [result.outcome for result in results]
            same += sum(result.actions == result.uniform for result in results)
            below += sum(outcome.score < best.score - 1e-6 for outcome in found)
            cases += len(found)
            asked = f"{demand.max_storage:.2f}, {demand.max_latency:.3f}"
            tables.setdefault(name, []).append((asked, *map(_told, (best, *found)), recipe))
    page = Page("uniform_study", "python -m plywise.experiments.studies.uniform_study", time.perf_counter() - started)
    page.text(
        "Scores, higher is better. In brackets: points lost on the validation images, shares of the original's bytes "
        "and of its latency on this machine. *: a ceiling is broken. Demands: at most 1 point, and two ceilings each, "
        "fixed beforehand. Best uniform: the best of all plans with one number format for all layers, with and without "
        f"8-bit activations, each scored exactly. The methods have {BUDGET} exact scores each and start from "
        f"up to {UNIFORM_SCORES} uniform plans that they choose by their estimates, as `plywise compress` does; seed 0."
    )
    for name, rows in tables.items():
        page.text(name)
        page.table(("storage, latency", "best uniform", *methods, "its recipe"), rows)
    page.text(
        f"**Below the best uniform plan: {below} of {cases}.** In {same} of them the method found nothing better than "
        "the uniform plans that it started from."
    )
    page.write(Console())


def demands(subject: Subject) -> Iterator[Demand]:
    """Yields twelve demands of two ceilings each."""
    for storage, latency in itertools.product(STORAGE, LATENCY[subject.network.name]):
        yield Demand(1.0, max_storage=storage, max_latency=latency)


def best_uniform(subject: Subject, demand: Demand) -> tuple[Outcome, str]:
    """Scores all uniform plans exactly; returns the best one's outcome and recipe."""
    evaluator = ExactEvaluator(subject, demand, early=False)
    plans = uniform_plans(subject.price(), formats_only=True)
    outcomes = [evaluator.evaluate(plan.tolist()) for plan in plans]
    best = int(np.argmax([outcome.score for outcome in outcomes]))
    names = [menu[slot] for menu, slot in zip(subject.price().recipes, plans[best], strict=True)]
    return outcomes[best], max(names, key=len)


def search(method: SearchMethod, subject: Subject, demand: Demand) -> SearchResult:
    """Returns what a method finds, started as `plywise compress` starts it."""
    return method.search(ExactEvaluator(subject, demand), BUDGET, 0, from_uniform=True)


def _subjects() -> Iterator[Subject]:
    weights, images = resnet_files()
    yield study("zoo:resnet20", load_dataset(images), weights).subject
    for name in LATENCY:
        if name != "resnet20":
            yield study(f"zoo:{name}", load_dataset("digits")).subject


def _told(outcome: Outcome) -> str:
    broken = "" if outcome.demand_met else "*"
    return f"{outcome.score:.3f}{broken} ({outcome.drop:.2f}, {outcome.ratios[0]:.3f}, {outcome.ratios[1]:.3f})"


if __name__ == "__main__":
    main()
