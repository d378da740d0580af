"""Names that people mistype are checked before torch is imported, which takes seconds.

What is written here once more is held to the real registries by `tests/test_known_names.py`. Whatever passes is checked
again where it is used.
"""

import ast
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from plywise.compressors.errors import ConfigurationError, FileFormatError, unknown_name
from plywise.compressors.recipes.notation import IDENTITY, parse_recipe
from plywise.compressors.recipes.plan_file import read_plan_files
from plywise.experiments.console.arguments import names_in

AGENT = "ppo"
METHODS = ("random", "uniform", "greedy", "knapsack", "guided")
DATASETS = ("digits", "mnist", "cifar10", "folder")
LISTS = ("techniques", "networks", "datasets", "methods", "devices")
NETWORKS = (
    *("digits-mlp", "digits-lenet", "digits-vgg", "digits-plain", "digits-resnet", "digits-resnet-a"),
    *("digits-mobilenet", "digits-separable", "digits-densenet", "digits-vit", "digits-vit-mean"),
    *("lenet-300-100", "lenet-5", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "vgg16-bn"),
    *("mobilenet-v2", "stdlib-gpt", "stdlib-gru", "stdlib-bert", "digits-unet", "digits-detector", "cancer-mlp"),
    *("diabetes-mlp", "tones-cnn"),
)
TECHNIQUE_FOLDERS = ("structure", "sparsity", "quantization")


def check_names(options: Mapping[str, Any]) -> None:
    """Looks at the names among a command's options.

    Args:
        options: of a command, by name; others than model, models, data, method, device, devices, plan, agent and
            weights are not looked at.

    Raises:
        ConfigurationError: on a name that is not known.
        FileFormatError: where a plan is missing or is none.
    """
    for network in filter(None, (_zoo_name(options.get("model")), *names_in(options.get("networks")))):
        if network not in NETWORKS:
            raise unknown_name("network", network, NETWORKS)
    method, agent, plans = options.get("method"), options.get("agent"), options.get("plan")
    if method is not None and method not in (AGENT, *METHODS):
        raise unknown_name("method", method, (AGENT, *METHODS))
    data = options.get("data")
    if data is not None and data.partition(":")[0] not in DATASETS:
        raise unknown_name("dataset", data.partition(":")[0], DATASETS)
    for device in filter(None, (options.get("device"), *names_in(options.get("devices")))):
        check_device(device)
    if plans and agent is None and method is None:  # else they do not go together, which is told first
        check_plans(plans)


def check_device(name: str) -> None:
    """Raises ConfigurationError unless a device is this machine, a file or declared."""
    from plywise.env.costs.declared_devices import DECLARED

    if name.partition(":")[0] in ("here", "cuda") or name.endswith(".json") or Path(name).is_file():
        return
    if name not in DECLARED:
        raise unknown_name("device", name, ("here", "cuda", *DECLARED))


def check_plans(paths: Sequence[Path]) -> None:
    """Looks at files of plans: that they are there and name known techniques.

    Raises:
        ConfigurationError: on a technique or a recipe that is not known.
        FileFormatError: where a file is missing or is no plan.
    """
    for path in paths:
        if path.is_dir():
            inner = path / "plan.yaml"
            hint = (
                f"did you mean {inner}?" if inner.is_file() else "give a plan.yaml, such as 'plywise compress' writes"
            )
            raise FileFormatError(f"{path} is a folder, not a plan; {hint}")
        if not path.is_file():
            raise FileFormatError(f"{path} does not exist; give a plan.yaml, such as 'plywise compress' writes")
    found = read_plan_files(paths)
    known = {*technique_names(), *found.recipes}
    for recipe in (*found.recipes.values(), *found.patterns.values(), *found.layers.values()):
        try:
            for name, _ in parse_recipe(recipe.text):
                check_technique(name, known)
        except ConfigurationError as error:
            raise ConfigurationError(f"{recipe.where}: {error}") from error


def check_technique(name: str, known: set[str] | None = None) -> None:
    """Raises ConfigurationError on an unknown technique; says nothing where other packages bring some."""
    known = technique_names() if known is None else known
    if name not in known and not metadata.entry_points(group="plywise.techniques"):
        raise unknown_name("technique", name, known)


def technique_names() -> set[str]:
    """Returns `identity` and what our own techniques are called, read from their files without importing them."""
    root = Path(__file__).resolve().parents[2] / "compressors"
    found = {IDENTITY}
    for folder in TECHNIQUE_FOLDERS:
        for path in (root / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.AnnAssign)
                    and isinstance(node.target, ast.Name)
                    and node.target.id == "name"
                    and isinstance(node.value, ast.Constant)
                ):
                    found.add(str(node.value.value))
    return found


def _zoo_name(model: object) -> str | None:
    """Returns the name of a network of the zoo; None for a function of the user's, or where there is none."""
    if not isinstance(model, str):
        return None
    kind, colon, name = model.rpartition(":")
    return name if (not colon or kind == "zoo") and not name.endswith(".py") else None
