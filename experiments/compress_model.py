"""Compresses one network: `python experiments/compress_model.py --help`, or `plywise compress --help`."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.agent.search.agent_search import AgentSearch
from plywise.agent.search.attainable import check_attainable, what_was_attainable
from plywise.agent.search.methods import SEARCH_METHODS
from plywise.agent.search.search_method import UNIFORM_SCORES, SearchMethod
from plywise.compressors.errors import ConfigurationError, FileFormatError, unknown_name
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.env.costs.devices import open_device
from plywise.env.costs.latency import Latencies
from plywise.env.exact_evaluator import ExactEvaluator
from plywise.env.execution.progress import Progress, phase, tracked
from plywise.env.network.preparation import prepare
from plywise.env.network.scheme import Scheme
from plywise.env.prices.pricing import original_storage
from plywise.env.recovery.recovery import Recovered, recover
from plywise.env.recovery.recovery_settings import RecoverySettings
from plywise.env.recovery.recovery_state import STATE_FILE
from plywise.env.recovery.training_data import AugmentedImages, TaskBatches, TrainingData
from plywise.env.score.demand import Demand
from plywise.env.subject import Subject
from plywise.env.task.task import Task
from plywise.env.walk.observation import CONTEXT_FEATURES, ROW_FEATURES
from plywise.experiments.commands.compression_settings import CompressionSettings, SourceSettings
from plywise.experiments.commands.near_chance import chance_warning, tell
from plywise.experiments.commands.reproducing import reproducing_command
from plywise.experiments.commands.study import Study, load_both, study_network, trained_here, validation_kind
from plywise.experiments.commands.usual_preprocessing import preprocessing_warning
from plywise.experiments.console.known_names import check_plans
from plywise.experiments.data.dataset import Dataset
from plywise.experiments.handover.alternatives import Scored
from plywise.experiments.handover.files import PLAN
from plywise.experiments.handover.handover import hand_over
from plywise.experiments.handover.report import Origin
from plywise.experiments.handover.run_folder import check_folder, claimed
from plywise.experiments.pages.wording import attainable_in_words, verdict

Report = dict[str, Any]

MOST_POINTS = 100.0
"""That can be lost."""

UNKNOWN = "-"
"""Stands for what could not be measured."""


def compress_model(settings: CompressionSettings, out: Path) -> Report:
    """Finds a plan for a network, builds it, and writes the hand-over folder.

    Args:
        settings: what to do.
        out: folder to write.

    Raises:
        PlywiseError: on anything that the user can fix, before anything is computed where possible.
    """
    started = time.perf_counter()
    source, search, demand = settings.source, settings.search, settings.demand
    check_folder(out)
    given = None if not search.plan else read_plan(search.plan, search.agent, search.method)
    searcher = find_method(search.method, search.agent) if given is None else None
    latency = open_device(settings.device)
    with phase(tracked, f"{source.name}: loading network and data"):
        network, data = load_both(source.model, source.data, source.weights, source.preprocessing, source.task)
    check_recovery(settings.recovery, data)
    command = reproducing_command(settings, out)
    with claimed(out):
        studied, notes, warnings = studied_aloud(settings, network, data, latency)
        subject, task = studied.subject, studied.task
        if settings.drop is not None:
            demand = replace(demand, max_accuracy_drop=points_of(settings.drop, subject))
        scored: tuple[Scored, ...] = ()
        if searcher is None:
            assert given is not None
            chosen, refused = given.on(subject.network)
            check_weights_run(subject, chosen)
            evaluations = stopped = started_from = 0
            uniform = None
            tell_other_network(given, subject)
            tell_refused(refused)
            tell_overridden(given, subject)
            tell_off_table(subject, chosen)
        else:
            refused = {}
            tell_note(check_attainable(subject.price(), demand))
            most = search.evaluations + UNIFORM_SCORES
            with Progress(f"{source.name}: scoring plans, at most", most) as bar:
                evaluator = ExactEvaluator(subject, demand, watch=bar.update)
                result = searcher.search(evaluator, search.evaluations, search.seed, from_uniform=True)
                bar.update(most)
            chosen, evaluations, stopped = subject.plan(result.actions), evaluator.evaluations, evaluator.stopped
            started_from = evaluations - result.evaluations
            uniform, scored = subject.plan(result.uniform), result.scored
        chosen.save(out / PLAN)  # before anything else: what a search has found is never lost
        origin = Origin(
            model=source.name,
            data=source.data_name,
            seed=search.seed,
            method="plan" if searcher is None else searcher.name,
            evaluations=evaluations,
            started=started,
            validation=validation_kind(source.model, task or data, source.weights),  # type: ignore[arg-type]
            refused=refused,
            preprocessing=data.preprocessing if isinstance(data, Dataset) else None,
            classes=data.classes if isinstance(data, Dataset) else (),
            task=source.task if isinstance(source.task, str) else None,
            notes=notes,
            warnings=warnings,
            stopped=stopped,
            uniform=uniform,
            uniform_evaluations=started_from,
            scored=scored,
            attainable=what_was_attainable(subject.price(), demand, scored) if scored else {},
            architecture=source.model if isinstance(source.model, str) else None,
            command=command,
        )
        recovery = settings.recovery
        recovered = None
        if recovery is not None:
            recovered = fine_tune(subject, chosen, training_data(data, studied), recovery, out, demand)
        return hand_over(subject, chosen, demand, studied.test, out, origin, recovered)


def studied_aloud(
    settings: CompressionSettings, network: nn.Module, data: Dataset | Task, latency: Latencies
) -> tuple[Study, tuple[str, ...], tuple[str, ...]]:
    """Studies a network and says what a user should know about it.

    Args:
        settings: source, seed and repair are looked at.
        network, data: as `load_both` returns them.
        latency: of the device.

    Returns:
        The study; notes; and what casts doubt on all figures.
    """
    source = settings.source
    warnings = input_warnings(network, source, data)
    studied = study_network(
        network,
        source.name,
        data,
        settings.search.seed,
        latency=latency,
        repair=settings.repair,
        ignored=source.ignored,
    )
    notes = (*studied.subject.network.notes, *(() if studied.task is None else studied.task.notes))
    for note in notes:
        tell_note(note)
    chance = chance_warning(studied.subject.accuracy, data) if isinstance(data, Dataset) else None
    tell(chance)
    return studied, notes, warnings if chance is None else (*warnings, chance)


def points_of(drop: float, subject: Subject) -> float:
    """Returns a drop of the metric in points; raises ConfigurationError where it is more than the metric can lose."""
    judge = subject.validation.judge
    if drop > MOST_POINTS * judge.point:
        raise ConfigurationError(
            f"limits['drop']={drop:g} is more than {MOST_POINTS * judge.point:.4g} {judge.unit}, all that the "
            f"original's {judge.name} can lose; give less, in {judge.unit}"
        )
    return drop / judge.point


def tell_note(text: str | None) -> None:
    """Says something on the standard error stream, where there is anything to say."""
    if text is not None:
        print(f"note: {text}", file=sys.stderr)


def fine_tune(
    subject: Subject, plan: Plan, data: TrainingData, settings: RecoverySettings, out: Path, demand: Demand
) -> Recovered:
    """Fine-tunes a plan's network; goes on where an interrupted run in `out` stopped."""
    share = demand.max_storage
    most = None if share is None else share * original_storage(subject.network)
    state = out / STATE_FILE
    return recover(subject, plan, data, settings, state, tracked, most)


def input_warnings(network: nn.Module, source: SourceSettings, data: Dataset | Task) -> tuple[str, ...]:
    """Says at once, and returns, what casts doubt on how images are prepared for a network."""
    if not isinstance(data, Dataset) or trained_here(source.model, source.weights):
        return ()
    warning = preprocessing_warning(prepare(network).model, data)
    tell(warning)
    return () if warning is None else (warning,)


def training_data(data: Dataset | Task, studied: Study) -> TrainingData:
    """Returns what a compressed network is trained on."""
    if isinstance(data, Dataset):
        return AugmentedImages(data.train, data.augmentation)
    assert studied.task is not None
    return TaskBatches(studied.task.training)


def check_recovery(settings: RecoverySettings | None, data: Dataset | Task) -> None:
    """Raises ConfigurationError where a network is to be trained on labels and nothing says how."""
    if settings is not None and settings.mode == "finetune" and isinstance(data, Task) and data.loss is None:
        raise ConfigurationError(
            "recover='finetune' needs a loss: give Task(loss=(outputs, batch) -> scalar), or take recover='distill', "
            "which learns from the original alone"
        )


def read_plan(plans: Sequence[Path], agent: Path | None = None, method: str | None = None) -> Scheme:
    """Reads a plan, or a scheme that a plan follows from, that is to be applied as it is; the last file wins.

    Raises:
        ConfigurationError: if an agent or a method is named as well, or a recipe is not valid.
        FileFormatError: if the file is not a plan.
    """
    if agent is not None or method is not None:
        raise ConfigurationError(
            "a plan is applied as it is, nobody looks for another: leave out either --plan or --agent and --method"
        )
    check_plans(plans)
    return Scheme.load(*plans)


def tell_other_network(scheme: Scheme, subject: Subject) -> None:
    """Says on the standard error stream where a plan that fits was made for another network."""
    if scheme.network not in ("", subject.network.name):
        tell_note(f"the plan was made for {scheme.network!r} and fits {subject.network.name!r} too; applied as written")


def tell_refused(refused: Mapping[str, str]) -> None:
    """Says on the standard error stream which layers a pattern's recipe does not fit."""
    for layer, reason in refused.items():
        tell_note(f"layer {layer} is {reason}")


def tell_overridden(scheme: Scheme, subject: Subject) -> None:
    """Says on the standard error stream which patterns decide no layer."""
    for pattern, others in scheme.overridden(subject.network).items():
        by = ", ".join(map(repr, others))
        tell_note(f"pattern {pattern!r} decides no layer: what comes later or is a name overrides it everywhere ({by})")


def check_weights_run(subject: Subject, plan: Plan) -> None:
    """Raises ConfigurationError where integer kernels of the device would compute something else than the plan says."""
    device = subject.latency.device
    for layer, recipe in plan.items():
        reason = device.why_refused(recipe)
        if reason is not None:
            raise ConfigurationError(
                f"layer {layer!r} cannot take {recipe}: {reason}; take bits={device.integer_weight_bits} or name a "
                "--device that has such an instruction"
            )


def tell_off_table(subject: Subject, plan: Plan) -> None:
    """Says on the standard error stream which recipes are allowed but not on the price list."""
    found: dict[Recipe, list[str]] = {}
    for layer, menu in zip(subject.price().layers, subject.price().recipes, strict=True):
        if str(plan[layer]) not in menu:
            found.setdefault(plan[layer], []).append(layer)
    for recipe, layers in found.items():
        where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(layers)}"
        tell_note(f"{recipe} is not on the price list of {where}; applied as written")


def find_method(name: str | None, agent: Path | None) -> SearchMethod:
    """Returns who looks for the plan: the agent where one is given, else the method of a name.

    Raises:
        ConfigurationError: on an unknown name, on both an agent and another method, or on neither.
        FileFormatError: if the agent cannot be read.
    """
    known = (AgentSearch.name, *SEARCH_METHODS)
    if name is not None and name not in known:
        raise unknown_name("method", name, known)
    if agent is not None:
        if name not in (None, AgentSearch.name):
            raise ConfigurationError(f"method {name!r} needs no agent: leave out either --method or --agent")
        return AgentSearch(load_agent(agent))
    if name is None or name == AgentSearch.name:
        raise ConfigurationError(
            "who should look for the plan? Give --agent FOLDER (train one with 'plywise train', or 'make demo' leaves "
            f"one in runs/demo/agent), or a method that needs no training: --method {', '.join(SEARCH_METHODS)}"
        )
    return SEARCH_METHODS[name]


def load_agent(folder: Path) -> RecipeAgent:
    """Reads a trained agent that fits this version's observations; raises FileFormatError on anything else."""
    if not (folder / "agent.json").is_file():
        inner = folder / "agent"
        hint = f"did you mean {inner}?" if (inner / "agent.json").is_file() else "train one with 'plywise train'"
        raise FileFormatError(f"{folder} is not the folder of a trained agent (it has no agent.json); {hint}")
    agent = RecipeAgent.load(folder, CONTEXT_FEATURES, ROW_FEATURES)
    sizes, expected = (agent.scorer.context_size, agent.scorer.recipe_size), (len(CONTEXT_FEATURES), len(ROW_FEATURES))
    if sizes != expected:
        raise FileFormatError(
            f"the agent in {folder} was trained on {sizes[0]} and {sizes[1]} features of context and recipe, this "
            f"version has {expected[0]} and {expected[1]}; train it again"
        )
    return agent


def show_report(report: Report, console: Console | None = None) -> None:
    """Prints original, uniform int8 and compressed side by side."""
    table = Table("", title=f"{report['model']} on {report['data']} ({report['method']})")
    blocks = [report[name] for name in ("original", "uniform_int8", "compressed")]
    uniform = report["uniform_int8"]
    metric, unit = report["metric"]["name"], report["metric"]["unit"]
    shown_as = ".2f" if unit == "%" else ".4g"
    for heading in ("original", f"uniform {uniform['format']}", "compressed", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, key, fmt in (
        (f"{metric} of model.onnx, {unit}", "accuracy", shown_as),
        (f"{metric} in torch, {unit}", "torch_accuracy", shown_as),
        ("weights.safetensors, bytes", "storage_bytes", ",d"),
        ("model.onnx, bytes", "onnx_bytes", ",d"),
        ("model.onnx.xz, bytes", "onnx_xz_bytes", ",d"),
        (f"latency, ms ({report['device']['latency_source']})", "device_latency_ms", ".4f"),
        (f"latency, ms (ONNX Runtime, {_here(blocks[0])})", "latency_ms", ".4f"),
        (f"energy, mJ ({blocks[0]['energy_source']})", "energy_mj", ".4g"),
        ("macs", "macs", ",d"),
        ("parameters", "parameters", ",d"),
    ):
        if key not in blocks[0]:  # only devices that are not this machine have a latency of their own
            continue
        shown = (UNKNOWN if block[key] is None else format(block[key], fmt) for block in blocks)
        table.add_row(name, *shown, "" if key.endswith("accuracy") else _share(blocks[2][key], blocks[0][key]))
    console = console or Console()
    console.print(table)
    console.print(f"uniform {uniform['format']}: {uniform['weight_bits_reason']}", soft_wrap=True)
    if "device_latency_source" in blocks[2]:
        console.print(f"judged by the latency on {report['device']['name']}; {blocks[2]['device_latency_source']}")
    if not blocks[2].get("fits_memory", True):
        console.print(f"does NOT fit the memory of {report['device']['name']}: {_memory(report)}", soft_wrap=True)
    if report["preprocessing"] is not None:
        console.print(f"inputs: {report['preprocessing']['in_words']}", soft_wrap=True)
    if "uniform" in report:
        console.print(_uniform(report))
    console.print(f"recipes a layer {_choices(report)}")
    scored = f"plans scored: {report['evaluations']}"
    if report.get("uniform_evaluations"):
        scored += f", {report['uniform_evaluations']} of them uniform"
    if report.get("stopped_early"):
        scored += f", {report['stopped_early']} stopped early"
    for check in report["checks"]:
        if not check["passed"]:
            console.print(f"check FAILED: {_failure(check)}", soft_wrap=True)
    score = UNKNOWN if report["score"] is None else f"{report['score']:.3f}"
    console.print(f"demand {verdict(report)}; score {score}; {scored}")
    if not report["demand_met"] and report["attainable"]:
        console.print(attainable_in_words(report), soft_wrap=True)
    for warning in report["warnings"]:
        console.print(f"WARNING: {warning}", style="bold red", soft_wrap=True)


def _share(after: float | None, before: float | None) -> str:
    return UNKNOWN if after is None or not before else f"{after / before:.3f}"


def _failure(check: Mapping[str, Any]) -> str:
    """Returns what was found, by how much, and why."""
    allowed = "" if check["allowed"] is None else f" ({check['unit']}: at most {check['allowed']:.2g} is allowed)"
    return f"{check['name']}: {check['problem']}{allowed}; likely cause: {check['likely_cause']}"


def _uniform(report: Report) -> str:
    """Returns what the best uniform plan of the search reaches, as shares of the original."""
    block, original = report["uniform"], report["original"]
    unit = report["metric"]["unit"]
    accuracy = UNKNOWN if block["accuracy"] is None else f"{block['accuracy']:{'.2f' if unit == '%' else '.4g'}} {unit}"
    keys = {"storage": "storage_bytes", "latency": report["demand_latency"], "energy": "energy_mj"}
    shares = ", ".join(f"{name} {_share(block[key], original[key])}" for name, key in keys.items())
    verdict = "met" if block["demand_met"] else "NOT met"
    return f"best with one recipe for all layers: {block['recipe']}: {accuracy}, {shares}; demand {verdict}"


def _here(block: Mapping[str, Any]) -> str:
    """Returns what the latencies that were measured here are those of."""
    batch = block.get("batch", 1)
    return "here" if batch == 1 else f"here, batch of {batch}"


def _choices(report: Report) -> str:
    """Returns how many recipes the layers could choose from, the fewest and the most."""
    found = [row["choices"] for row in report["layers"] if "choices" in row]
    legal, offered = (sorted(row[key] for row in found) for key in ("legal", "offered"))
    return f"can take: {legal[0]} to {legal[-1]}; offered, as no other beats them: {offered[0]} to {offered[-1]}"


def _memory(report: Report) -> str:
    needed, there = report["compressed"]["memory_needed_bytes"], report["device"]["memory_bytes"]
    fix = "give a lower --max-latency (fewer channels, 8-bit activations) or take a device with more memory"
    return f"it needs at least {needed:,} bytes while it runs, and there are {there:,}; {fix}"


if __name__ == "__main__":
    import_module("plywise.__main__").main(["compress", *sys.argv[1:]])
