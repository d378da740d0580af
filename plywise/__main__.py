"""The command line: `plywise train | compress | plan | pareto | evaluate | profile | compare | init | list`.

`python -m plywise` does the same. What needs torch is imported once the names are known to be right.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from plywise import __version__
from plywise.experiments.console.arguments import names_in, parsed_form
from plywise.experiments.console.known_names import check_names, check_technique
from plywise.experiments.console.mistakes import telling_mistakes
from plywise.experiments.console.options import OptionParser
from plywise.experiments.console.output import show_result, shown, starting

DEMAND_NOT_MET = 3

NO_SETTINGS = ("out", "memory", "front", "pick", "knee", "quiet", "json")
"""Options of `compress` that do not say what is compressed, or how."""


def train(
    out: Path = Path("runs/agent"),
    networks: str | None = None,
    hold_out: str | None = None,
    data: str | None = None,
    model: str | None = None,
    task: str | None = None,
    weights: Path | None = None,
    steps: int = 200_000,
    envs: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    devices: str = "here",
    memory: float | None = None,
    mean: str | None = None,
    std: str | None = None,
    size: str | None = None,
    crop: float | None = None,
    channels: str | None = None,
) -> None:
    """Trains an agent over a zoo of networks and over sampled demands. An interrupted run goes on where it stopped.

    Args:
        out: folder that receives agent/ and tensorboard/
        networks: names of zoo networks, with commas between (see 'plywise list networks'); all that are trained on
            the spot where not given; 'none' beside a --model of your own
        hold_out: names among them that the agent must not see, with commas between
        data: dataset that classifiers of images are trained and compressed on, digits where not given; the other
            networks have data of their own
        model: a network of your own to train on as well, as in 'plywise compress'; --data is then its data, and the
            zoo's classifiers keep the digits
        task: of that network, as in 'plywise compress'
        weights: state dict of that network
        steps: environment steps
        envs: environments side by side
        learning_rate: of Adam, at the start
        seed: of every random choice
        devices: where the networks will run, with commas between; the agent learns for all of them (see '--device' of
            'plywise compress')
        memory: GiB that all processes together may keep while they price the networks; a quarter of the machine's
            where not given
        mean: as in 'plywise compress'
        std: as in 'plywise compress'
        size: as in 'plywise compress'
        crop: as in 'plywise compress'
        channels: as in 'plywise compress'
    """
    named = None if networks == "none" else networks
    check_names({"networks": named, "model": model, "data": data, "devices": devices})
    from plywise.agent.learning.ppo import BOUNDS, PPOSettings
    from plywise.compressors.errors import ConfigurationError
    from plywise.experiments.commands.compression_settings import SourceSettings
    from plywise.experiments.data.preprocessing import NOTHING_GIVEN, make_preprocessing
    from plywise.experiments.networks.zoo import TRAINED_HERE
    from plywise.experiments.train_agent import train_agent

    for option, value, field in (("steps", steps, "total_steps"), ("envs", envs, "num_envs")):
        least, most = BOUNDS[field]
        if not least <= value <= most:
            raise ConfigurationError(f"--{option} {value} must be at least {least} and at most {most:,}")
    settings = PPOSettings(
        total_steps=steps, num_envs=envs, minibatch=16 * envs, learning_rate=learning_rate, seed=seed
    )
    preprocessing, own = make_preprocessing(mean, std, size, crop, channels), None
    if model is not None:
        own = SourceSettings(model, data, task, weights, preprocessing)
        data, preprocessing = None, NOTHING_GIVEN
    elif task is not None or weights is not None:
        raise ConfigurationError("--task and --weights belong to a network of your own: give --model as well")
    agent = train_agent(
        () if networks == "none" else names_in(networks) or TRAINED_HERE,
        names_in(hold_out),
        data,
        out,
        settings,
        names_in(devices) or ("here",),
        memory,
        preprocessing,
        own,
    )
    print(
        f"agent of {agent.trained_steps:,} steps in {out / 'agent'}; curves: tensorboard --logdir {out / 'tensorboard'}"
    )


def compress(
    out: Path,
    model: str | None = None,
    data: str | None = None,
    task: str | None = None,
    ignored: str | None = None,
    agent: Path | None = None,
    method: str | None = None,
    plan: list[Path] | None = None,
    front: Path | None = None,
    pick: int | None = None,
    knee: bool = False,
    weights: Path | None = None,
    max_accuracy_drop: float | None = 1.0,
    max_storage: float | None = None,
    max_latency: float | None = None,
    max_energy: float | None = None,
    accuracy_weight: float = 1.0,
    storage_weight: float = 0.25,
    latency_weight: float = 0.25,
    energy_weight: float = 0.0,
    evaluations: int = 4,
    seed: int = 0,
    recover: str | None = None,
    epochs: int | None = None,
    incremental: bool = False,
    gradients: str | None = None,
    gradients_of: str | None = None,
    device: str | None = None,
    repair: str | None = None,
    memory: float | None = None,
    mean: str | None = None,
    std: str | None = None,
    size: str | None = None,
    crop: float | None = None,
    channels: str | None = None,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Compresses a network and writes plan.yaml, model.onnx, weights.safetensors, report.json and report.html.

    Exit code 0 if the demand is met, 3 if the files are written but a ceiling is broken, 2 on a mistake.

    Args:
        out: folder to write; must not hold another run
        model: zoo:NAME, package.module:factory or path.py:factory; needed unless --from says it
        data: digits, mnist:PATH, cifar10:PATH or folder:PATH (train/<class>/ and test/<class>/ or val/<class>/), for a
            classifier of its images: it reads float images (batch, channels, height, width), scaled to [0, 1], then
            normalised by mean and std, and gives one logit for each class, in the alphabetical order of the folders
        task: path.py:make_task, a function of yours that returns data, metric and loss ('plywise init' writes a file to
            start from); networks of the zoo that are no classifiers of images bring their own
        ignored: layers to leave as they are, with commas between: names, patterns of names such as 'head*', types such
            as Embedding
        agent: folder of a trained agent, which looks for the plan (what 'plywise train' wrote, or runs/demo/agent)
        method: who looks for the plan where no agent is given: guided, knapsack, greedy, uniform, random
        plan: a plan, or recipes by name pattern or type, to apply as they are instead of looking for a plan; may be
            given several times, the last one wins
        front: written --from as well: folder of a front, as 'plywise pareto' writes; one of its plans is handed over,
            with network, data and device as they were there where not given
        pick: number of that plan, as the front's table and picture show it
        knee: take the plan of the front from which on further savings cost most accuracy
        weights: state dict of the network (.safetensors, or a torch file of tensors)
        max_accuracy_drop: points of accuracy that may be lost, of other metrics hundredths of the original's value;
            null for no ceiling
        max_storage: ceiling on the file's bytes, as a share of the original's (0.15 means 15 %)
        max_latency: ceiling on the latency, as a share of the original's
        max_energy: ceiling on the modelled energy, as a share of the original's
        accuracy_weight: what a point of accuracy is worth
        storage_weight: what 2.72 times fewer bytes are worth
        latency_weight: what 2.72 times less latency is worth
        energy_weight: what 2.72 times less energy is worth
        evaluations: plans that are scored exactly, at most
        seed: of every random choice
        recover: finetune, or distill with the original as the teacher, trains the compressed network on
        epochs: passes of that over the training images; 3 where not given
        incremental: whether weights are rounded portion by portion in it
        gradients: quantiser of weights that rounds gradients in it, such as 'dynamic_fixed_point(width=8)'
        gradients_of: which of them, with commas between: weights, biases, errors; all where not given
        device: where the network will run: a name from 'plywise list devices' (a model of it, labelled declared) or a
            device file that was measured there; this machine with one thread where not given, here:4 with four,
            here:4x8 with batches of eight as well, cuda or cuda:x8 for its NVIDIA card
        repair: parts of the repair of compressed networks, with commas between, to see what each is worth: means,
            deviations, least_squares, or none; all where not given
        memory: GiB that compressed layers and outputs kept for the next score may take; a quarter of the machine's
            where not given
        mean: what is taken from each channel of the images after scaling to [0, 1], as when the network was trained:
            one number, or one a channel with commas between; the dataset's usual one, or that of its training images,
            where not given
        std: what each channel is divided by then, likewise
        size: height and width of the images that the network reads, such as 224, or 192x256; images are resized until
            they just cover size / crop, keeping their proportions, and the middle is cut out; where not given they
            stay as they are and must all have one size
        crop: share of the resized image that is cut out; 0.875 where not given, and 1 where all images have the size
            already
        channels: order of the channels that the network reads: rgb, bgr or gray; that of the images where not given
        quiet: show only results and errors
        json: print the report as JSON, and all else on the standard error stream
    """
    options = {name: value for name, value in locals().items() if name not in NO_SETTINGS}
    check_names(options)
    with starting(quiet):
        from plywise.env.storage.memory import limit_memory
        from plywise.experiments.commands.compression_settings import make_compression
        from plywise.experiments.compress_model import compress_model, show_report

    if front is not None:
        from plywise.experiments.front.picking import picked_options

        options = picked_options(options, front, pick, knee)
    limit_memory(memory)
    with shown(quiet, json):
        report = compress_model(make_compression(options), out)
    show_result(report, json, lambda: show_report(report))
    if not json:
        print(f"written to {out}")
    if not report["demand_met"]:
        raise SystemExit(DEMAND_NOT_MET)


def plan_(
    plan: list[Path],
    model: str,
    data: str | None = None,
    task: str | None = None,
    ignored: str | None = None,
    weights: Path | None = None,
    device: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    size: str | None = None,
    crop: float | None = None,
    channels: str | None = None,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Checks and prices a plan without building it: plywise plan FILE FILE --model zoo:digits-lenet --data digits.

    Args:
        plan: files of a plan, or of recipes by name pattern or type; the last one wins
        model: as in 'plywise compress'
        data: as in 'plywise compress'
        task: as in 'plywise compress'
        ignored: as in 'plywise compress'
        weights: as in 'plywise compress'
        device: as in 'plywise compress'
        mean: as in 'plywise compress'
        std: as in 'plywise compress'
        size: as in 'plywise compress'
        crop: as in 'plywise compress'
        channels: as in 'plywise compress'
        quiet: show only results and errors
        json: print the prices as JSON, and all else on the standard error stream
    """
    options = {name: value for name, value in locals().items() if name not in NO_SETTINGS}
    check_names(options)
    with starting(quiet):
        from plywise.experiments.commands.compression_settings import make_compression
        from plywise.experiments.price_plan import price_plan, show_plan_price

    with shown(quiet, json):
        found = price_plan(make_compression(options))
    show_result(found, json, lambda: show_plan_price(found))


def pareto(
    model: str,
    out: Path,
    data: str | None = None,
    task: str | None = None,
    ignored: str | None = None,
    agent: Path | None = None,
    weights: Path | None = None,
    max_drop: float = 5.0,
    evaluations: int = 48,
    seed: int = 0,
    device: str | None = None,
    memory: float | None = None,
    mean: str | None = None,
    std: str | None = None,
    size: str | None = None,
    crop: float | None = None,
    channels: str | None = None,
    quiet: bool = False,
) -> None:
    """Finds what is attainable: the front of a network over accuracy, bytes, latency and energy.

    Writes front.svg, front.csv and a plan for each point, renewed with every plan that is scored: first plans with one
    recipe for all layers, which are rough, then those of a search for many demands at once. An interrupted run goes on
    where it stopped. 'plywise compress --from OUT --pick N', or --knee, hands a plan over.

    Args:
        model: as in 'plywise compress'
        out: folder to write; a folder of the same run is gone on with
        data: as in 'plywise compress'
        task: as in 'plywise compress'
        ignored: as in 'plywise compress'
        agent: folder of a trained agent, whose walks are scored too where they promise most
        weights: as in 'plywise compress'
        max_drop: points of accuracy, of other metrics hundredths of the original's value, that are worth looking at
        evaluations: plans that are scored exactly, at most, besides the first uniform ones
        seed: of every random choice
        device: as in 'plywise compress'
        memory: as in 'plywise compress'
        mean: as in 'plywise compress'
        std: as in 'plywise compress'
        size: as in 'plywise compress'
        crop: as in 'plywise compress'
        channels: as in 'plywise compress'
        quiet: as in 'plywise compress'
    """
    options = {name: value for name, value in locals().items() if name not in ("out", "memory", "max_drop", "quiet")}
    check_names(options)
    with starting(quiet):
        from plywise.env.storage.memory import limit_memory
        from plywise.experiments.commands.compression_settings import make_compression
        from plywise.experiments.front.find_front import find_front, show_front

    limit_memory(memory)
    with shown(quiet, as_json=False):
        found = find_front(make_compression(options), max_drop, out, options)
    show_front(found)


def evaluate(
    folder: Path,
    data: str | None = None,
    model: str | None = None,
    task: str | None = None,
    weights: Path | None = None,
    mean: str | None = None,
    std: str | None = None,
    size: str | None = None,
    crop: float | None = None,
    channels: str | None = None,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Measures the files of a compressed network again: accuracy in ONNX Runtime and in torch, bytes, latency.

    Args:
        folder: what 'plywise compress' wrote
        data: dataset, whose test split is used; the one in the report where not given
        model: the network as in 'plywise compress'; only needed for networks outside the zoo
        task: as in 'plywise compress'; that of the report where not given
        weights: of the original network, where the metric is agreement with it
        mean: as in 'plywise compress'; that of the report where not given
        std: likewise
        size: likewise
        crop: likewise
        channels: likewise
        quiet: show only results and errors
        json: print the figures as JSON, and all else on the standard error stream
    """
    check_names({"model": model, "data": data})
    from plywise.experiments.commands.evaluate_files import evaluate_files, show_figures
    from plywise.experiments.data.preprocessing import make_preprocessing

    with shown(quiet, json):
        preprocessing = make_preprocessing(mean, std, size, crop, channels)
        figures = evaluate_files(folder, data, model, preprocessing, task, weights)
    show_result(figures, json, lambda: show_figures(figures, folder))


def profile(
    model: str,
    data: str | None = None,
    task: str | None = None,
    weights: Path | None = None,
    device: str | None = None,
    ask: Path | None = None,
    mean: str | None = None,
    std: str | None = None,
    size: str | None = None,
    crop: float | None = None,
    channels: str | None = None,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Shows what a network is made of and what its layers cost on this machine or another device.

    Args:
        model: zoo:NAME, package.module:factory or path.py:factory
        data: as in 'plywise compress'
        task: as in 'plywise compress'
        weights: state dict of the network
        device: as in 'plywise compress'
        ask: archive to write, such as questions.zip; 'python3 questions.zip device.json' on another machine that has
            numpy and onnxruntime measures the network's layers there, for --device device.json; with as many threads
            and inputs of one run as --device here:4x8 says
        mean: as in 'plywise compress'
        std: as in 'plywise compress'
        size: as in 'plywise compress'
        crop: as in 'plywise compress'
        channels: as in 'plywise compress'
        quiet: show only results and errors
        json: print the figures as JSON, and all else on the standard error stream
    """
    check_names({"model": model, "data": data, "device": device})
    from plywise.experiments.commands.profile_model import profile_model, show_profile
    from plywise.experiments.data.preprocessing import make_preprocessing

    with shown(quiet, json):
        preprocessing = make_preprocessing(mean, std, size, crop, channels)
        found = profile_model(model, data, weights, device, ask, preprocessing, task)
    show_result(found, json, lambda: show_profile(found))


def compare(runs: list[Path], changes: bool = False, page: Path | None = None, json: bool = False) -> None:
    """Shows two or more hand-over folders side by side: plywise compare RUN RUN --changes --page compared.html.

    Args:
        runs: folders that 'plywise compress' wrote, one after the other
        changes: show only the layers whose recipes differ
        page: an HTML file to write as well
        json: print JSON instead of tables
    """
    from plywise.experiments.commands.compare_runs import compare_runs

    compare_runs(runs, changes, page, json)


def init(out: Path = Path("task.py")) -> None:
    """Writes a commented file with a task of your own to start from: data, metric and loss of your network.

    Args:
        out: file to write; must not be there yet
    """
    from plywise.experiments.commands.task_file import write_task_file

    write_task_file(out)
    print(f"written to {out}; fill it in, then: plywise compress --model {out}:make_model --task {out}:make_task ...")


def list_(what: str = "techniques", name: str | None = None, json: bool = False) -> None:
    """Lists techniques, networks, datasets, search methods or devices; all about one: plywise list techniques low_rank.

    Args:
        what: techniques, networks, datasets, methods or devices
        name: of the one to explain
        json: print JSON
    """
    if what == "techniques" and name is not None:
        check_technique(name)
    from plywise.experiments.commands.listings import show_list

    show_list(what, name, json)


COMMANDS: dict[str, Any] = {
    "train": train,
    "compress": compress,
    "plan": plan_,
    "pareto": pareto,
    "evaluate": evaluate,
    "profile": profile,
    "compare": compare,
    "init": init,
    "list": list_,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; exit code 2 and one clear message on every mistake of the user's."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = parsed_form([argument for argument in given if argument != "--debug"])
    if given == ["--version"]:
        print(f"plywise {__version__}")
        return
    with telling_mistakes(debug):
        auto_cli(
            {given[0]: COMMANDS[given[0]]} if given and given[0] in COMMANDS else COMMANDS,  # parsers take long to make
            args=given or ["--help"],
            as_positional=False,
            prog="plywise",
            description="Compresses trained networks, layer by layer. Add --debug to any command for tracebacks.",
            parser_class=OptionParser,
        )


if __name__ == "__main__":
    # Spinning threads of two libraries would slow each other down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
