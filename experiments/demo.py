"""The main job on real input: learn over a small zoo, then compress three networks that were never seen."""

import json
import time
from pathlib import Path

from rich.console import Console

from plywise.agent.learning.ppo import PPOSettings
from plywise.env.score.demand import Demand
from plywise.experiments.commands.compression_settings import CompressionSettings, SearchSettings, SourceSettings
from plywise.experiments.commands.price_tables import price_networks
from plywise.experiments.compress_model import compress_model, show_report
from plywise.experiments.networks.zoo import ZOO
from plywise.experiments.train_agent import seen_networks, train_agent

DIGITS_ZOO = tuple(name for name, entry in ZOO.items() if entry.dataset == "digits")
"""What the demo learns on. To train and price the other families as well would double the time that this takes."""

HELD_OUT = ("digits-resnet-a", "digits-vit", "digits-mobilenet")
DEMAND = Demand(max_accuracy_drop=1.0, max_storage=0.15)
RUN = Path("runs/demo")
SETTINGS = PPOSettings(total_steps=110_000, num_envs=128)


def main() -> None:
    """Runs the demo; a second run finds what the first has made."""
    started = time.perf_counter()
    console = Console()
    console.rule("1  train: an agent learns over the digits zoo, three networks held out")
    seen = seen_networks(DIGITS_ZOO, HELD_OUT)
    left = [name for name in HELD_OUT if not (RUN / "compressed" / name / "report.json").exists()]
    # All are priced before the agent learns: nothing else of ours runs while latencies are measured.
    price_networks((*seen, *left))
    console.print(f"{len(seen) + len(left)} networks trained and priced after {time.perf_counter() - started:.0f} s")
    train_agent(DIGITS_ZOO, HELD_OUT, out=RUN, settings=SETTINGS)
    console.print(f"agent trained after {time.perf_counter() - started:.0f} s")
    console.rule("2  compress: the networks that it has never seen")
    reports = []
    for name in HELD_OUT:
        folder = RUN / "compressed" / name
        if (folder / "report.json").exists():
            reports.append(json.loads((folder / "report.json").read_text(encoding="utf-8")))
        else:
            reports.append(compress_model(asked_of(name), folder))
        show_report(reports[-1], console)
    console.rule("what to look at")
    console.print(
        f"[bold]{sum(report['demand_met'] for report in reports)} of {len(reports)}[/] demands met (accuracy drop at "
        f"most 1 point, storage at most 0.15 of the original) in {time.perf_counter() - started:.0f} s\n"
        f"plans      {RUN}/compressed/*/plan.yaml\n"
        f"reports    {RUN}/compressed/*/report.html\n"
        f"curves     .venv/bin/tensorboard --logdir {RUN}/tensorboard"
    )


def asked_of(name: str) -> CompressionSettings:
    """Returns what is asked for a network of the zoo."""
    return CompressionSettings(SourceSettings(f"zoo:{name}", "digits"), SearchSettings(agent=RUN / "agent"), DEMAND)


if __name__ == "__main__":
    main()
