"""Compresses one network: `python experiments/compress_model.py --help`, or `plywise compress --help`."""

import time
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from plywise.agent.agent_search import AgentSearch
from plywise.agent.methods import SEARCH_METHODS
from plywise.agent.recipe_agent import RecipeAgent
from plywise.agent.search_method import SearchMethod
from plywise.compressors.errors import ConfigurationError, unknown_name
from plywise.compressors.plan import Plan
from plywise.env.demand import Demand
from plywise.env.evaluator import check_demand
from plywise.env.exact_evaluator import ExactEvaluator
from plywise.env.handover import Origin, hand_over, prepare_folder
from plywise.env.observation import CONTEXT_FEATURES, ROW_FEATURES
from plywise.experiments.datasets import load_dataset
from plywise.experiments.study import study

Report = dict[str, Any]


def compress_model(
    model: str,
    data: str,
    out: Path,
    agent: Path | None = None,
    method: str = "ppo",
    plan: Path | None = None,
    weights: Path | None = None,
    demand: Demand | None = None,
    walks: int = 4,
    seed: int = 0,
) -> Report:
    """Finds a plan for a network, builds it, and writes the hand-over folder.

    Args:
        model: `zoo:NAME`, `package.module:factory` or `path.py:factory`.
        data: dataset, for example `digits` or `cifar10:PATH`.
        out: folder to write.
        agent: folder of a trained agent, for `method="ppo"`.
        method: who searches: `ppo` or one of the methods in `SEARCH_METHODS`.
        plan: a plan to apply instead of searching.
        weights: a state dict for the network.
        demand: what is wanted.
        walks: how many plans are scored exactly, at most.
        seed: of every random choice.

    Raises:
        PlywiseError: on anything that the user can mend, before anything is computed where possible.
    """
    started = time.perf_counter()
    demand = demand or Demand()
    prepare_folder(out)
    searcher = None if plan is not None else find_method(method, agent)
    given = None if plan is None else Plan.load(plan)
    dataset = load_dataset(data)
    studied = study(model, dataset, weights, seed)
    subject = studied.subject
    if given is not None:
        given.check(tuple(layer.name for layer in subject.layers))
        chosen, evaluations = given, 0
    else:
        assert searcher is not None
        check_demand(subject.table, demand)
        result = searcher.search(ExactEvaluator(subject, demand), walks, seed)
        chosen, evaluations = subject.plan(result.actions), result.evaluations
    origin = Origin(
        model=model,
        data=data,
        seed=seed,
        method="plan" if searcher is None else searcher.name,
        evaluations=evaluations,
        seconds=time.perf_counter() - started,
    )
    return hand_over(subject, chosen, demand, studied.test, out, origin)


def find_method(name: str, agent: Path | None) -> SearchMethod:
    """Returns a search method by name.

    Raises:
        ConfigurationError: on an unknown name, or `ppo` without an agent.
        FileFormatError: if the agent cannot be read.
    """
    if name == AgentSearch.name:
        if agent is None:
            raise ConfigurationError(
                "method 'ppo' needs a trained agent: give --agent FOLDER, or train one with 'plywise train'"
            )
        return AgentSearch(RecipeAgent.load(agent, CONTEXT_FEATURES, ROW_FEATURES))
    if name not in SEARCH_METHODS:
        raise unknown_name("method", name, (AgentSearch.name, *SEARCH_METHODS))
    return SEARCH_METHODS[name]


def show_report(report: Report, console: Console | None = None) -> None:
    """Prints original, uniform int8 and compressed side by side."""
    table = Table(title=f"{report['model']} on {report['data']} ({report['method']})")
    for heading in (
        "",
        "accuracy %",
        "bytes",
        "of original",
        "ONNX bytes",
        "latency ms",
        "M macs",
        "energy mJ (modelled)",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    whole = report["original"]["storage_bytes"]
    for name in ("original", "uniform_int8", "compressed"):
        block = report[name]
        table.add_row(
            name.replace("_", " "),
            f"{block['accuracy']:.2f}",
            f"{block['storage_bytes']:,}",
            f"{block['storage_bytes'] / whole:.3f}",
            f"{block['onnx_bytes']:,}",
            f"{block['latency_ms']:.4f}",
            f"{block['macs'] / 1e6:.3f}",
            f"{block['energy_mj']:.4f}",
        )
    console = console or Console()
    console.print(table)
    verdict = "met" if report["demand_met"] else f"NOT met: {report['violations']}"
    console.print(f"demand {verdict}; score {report['score']:.3f}; {report['evaluations']} plans scored exactly")


if __name__ == "__main__":
    auto_cli(compress_model, as_positional=False)
