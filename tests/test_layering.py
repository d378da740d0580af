"""Imports are absolute and point strictly down, between the layers and between the packages of each layer."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("compressors", "env", "agent", "experiments", "plywise")
PACKAGES = (
    *("compressors.errors", "compressors.plain_values", "compressors.atomic_file", "compressors.tensor_file"),
    "compressors.discovery",
    *("compressors.modules", "compressors.formats", "compressors.statistics", "compressors.recipes"),
    *("compressors.packing", "compressors.structure", "compressors.sparsity", "compressors.quantization"),
    *(
        "env.arrays",
        "env.storage",
        "env.execution",
        "env.task",
        "env.channels",
        "env.network",
        "env.calibration",
        "env.runtime",
        "env.costs",
    ),
    *("env.bank", "env.prices", "env.subject_key", "env.score", "env.exact_measurement", "env.subject"),
    *("env.exact_evaluator", "env.walk", "env.recovery"),
    *("agent.learning", "agent.search"),
    "experiments.console",
    *("experiments.data", "experiments.families", "experiments.networks", "experiments.pages"),
    "experiments.handover",
    *("experiments.commands", "experiments.compress_model", "experiments.price_plan", "experiments.train_agent"),
    "experiments.demo",
    *("experiments.workbench", "experiments.front", "experiments.studies", "experiments.breadth"),
    "plywise",
)
"""Packages, and files at the root of a layer, in the order of their imports: each may import those before it."""

FILES = [path for layer in LAYERS[:-1] for path in sorted((ROOT / layer).rglob("*.py"))]
FILES += sorted((ROOT / "plywise").glob("*.py"))
MOST_FILES, MOST_AT_ROOT = 15, 5
"""In a package and at the root of a layer, `__init__.py` apart."""


def package_of(name):
    """Returns `env.costs` for the module `env.costs.latency`, `env.subject` for that, the layer for its `__init__`."""
    first, *rest = name.split(".")
    return first if first == "plywise" or not rest else f"{first}.{rest[0]}"


def imported(path):
    """Returns the modules that a file imports and the level of each import, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module or ''}.{alias.name}", node.level) for alias in node.names)


def broken_rules(path, module):
    """Yields what is wrong with the imports of a file, which is the module `env.costs.latency`."""
    package = package_of(module)
    rank = len(PACKAGES) if package == "plywise" else PACKAGES.index(package) if package in PACKAGES else None
    for name, level in imported(path):
        first, *rest = name.split(".")
        if level:
            yield f"relative import of {name}"
        elif first in LAYERS and first != "plywise":
            yield f"{name} lacks the prefix plywise"
        elif first == "plywise" and package != "plywise":
            other = package_of(".".join(rest)) if rest else "plywise"
            if other in LAYERS[:-1]:  # the layer itself, whose __init__ registers at most
                above = LAYERS.index(other) > LAYERS.index(module.split(".")[0])
            else:
                above = other not in PACKAGES or rank is None or PACKAGES.index(other) > rank
            if above:
                yield f"{name} is above {package}"


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_there_are_files_in_every_layer():
    assert {module_of(path).split(".")[0] for path in FILES} == set(LAYERS)


def test_every_package_has_its_place_in_the_order():
    found = {package_of(module_of(path)) for path in FILES} - set(LAYERS[:-1])
    assert found == set(PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_down(path):
    assert list(broken_rules(path, module_of(path))) == []


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in FILES}), ids=lambda path: str(path.relative_to(ROOT))
)
def test_folders_stay_small(folder):
    files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= (MOST_AT_ROOT if folder.parent == ROOT else MOST_FILES)


@pytest.mark.parametrize(
    ("text", "module"),
    [
        ("from plywise.env.network.network import Network", "compressors.modules.layers"),
        ("import plywise.agent", "env.subject"),
        ("def f():\n    from plywise import compress", "agent.search.knapsack"),
        ("from plywise import __version__", "experiments.handover.report"),
        ("from . import errors", "compressors.formats.level_format"),
        ("from .errors import DataError", "plywise.__main__"),
        ("from env.network.network import Network", "agent.search.knapsack"),
        ("from plywise.env.walk.walk import Walks", "env.score.supply"),
        ("from plywise.compressors.structure.low_rank import LowRank", "compressors.recipes.plan"),
        ("from plywise.env import subject", "env.bank.bank"),
        ("from plywise.env.nowhere import subject", "env.bank.bank"),
    ],
)
def test_the_rule_can_fail(tmp_path, text, module):
    (tmp_path / "file.py").write_text(text)
    assert len(list(broken_rules(tmp_path / "file.py", module))) == 1
