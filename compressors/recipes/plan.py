"""A plan: a recipe for every layer of one network, as plain YAML that people read and edit."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import ConfigurationError, FileFormatError, unknown_name
from plywise.compressors.recipes.technique import Recipe

FORMAT = "plan/1"
SECTIONS = ("plywise", "network", "patterns", "layers")
"""What a file of a plan may hold."""


@dataclass(frozen=True)
class Plan(Mapping[str, Recipe]):
    """Recipes by layer name, in the order of the walk.

    Attributes:
        network: the network that it was made for.
        recipes: a recipe for each layer.
    """

    network: str
    recipes: Mapping[str, Recipe]

    def __getitem__(self, layer: str) -> Recipe:
        return self.recipes[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.recipes)

    def __len__(self) -> int:
        return len(self.recipes)

    def save(self, path: Path) -> None:
        """Writes the plan as YAML, atomically."""
        write_plan_file(path, self.network, layers=self.recipes)

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Reads a plan.

        Raises:
            FileFormatError: if the file is not a plan.
            ConfigurationError: if a recipe in it is not valid; the message names the layer.
        """
        network, patterns, layers = read_plan_file(path)
        if patterns:
            raise FileFormatError(f"{path} has 'patterns', which only name layers of a network: load it as a Scheme")
        return cls(network, layers)

    def check(self, layers: tuple[str, ...]) -> None:
        """Raises ConfigurationError, naming the first mismatch, unless the plan covers exactly `layers`."""
        which = f"the plan for {self.network!r}" if self.network else "the plan"
        for name in layers:
            if name not in self.recipes:
                raise ConfigurationError(
                    f"{which} has no recipe for layer {name!r} of this network; give the plan of "
                    "this network, or write 'identity' for a layer that should stay as it is"
                )
        for name in self.recipes:
            if name not in layers:
                raise ConfigurationError(
                    f"{which} names layer {name!r}, which this network does not have; "
                    f"its layers are {', '.join(layers[:8])}{', ...' if len(layers) > 8 else ''}"
                )


def write_plan_file(path: Path, network: str, **sections: Mapping[str, Recipe]) -> None:
    """Writes recipes by pattern, by layer, or both as YAML, atomically."""
    content: dict[str, object] = {"plywise": FORMAT, "network": network}
    for section, recipes in sections.items():
        content[section] = {name: str(recipe) for name, recipe in recipes.items()}
    write_atomically(path, yaml.safe_dump(content, sort_keys=False, width=1000).encode())


def read_plan_file(path: Path) -> tuple[str, dict[str, Recipe], dict[str, Recipe]]:
    """Returns the network's name and the recipes by pattern and by layer in a file; either may be missing, not both.

    Raises:
        FileFormatError: if the file is not a plan.
        ConfigurationError: if a recipe in it is not valid; the message names the layer.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise FileFormatError(f"{path} cannot be read as a plan: {error}") from error
    plan = content if isinstance(content, dict) and content.get("plywise") == FORMAT else {}
    given = [plan.get(section) for section in ("patterns", "layers")]
    if not any(isinstance(section, dict) for section in given) or not all(
        isinstance(section, dict | None) for section in given
    ):
        raise FileFormatError(
            f"{path} is not a plan: it must begin with 'plywise: {FORMAT}' and hold 'layers', 'patterns' or both"
        )
    patterns, layers = (
        {str(name): _recipe(text, f"{path}, {what} {name}") for name, text in (section or {}).items()}
        for section, what in zip(given, ("pattern", "layer"), strict=True)
    )
    for key in plan:
        if key not in SECTIONS:
            raise unknown_name(f"section of {path}", str(key), SECTIONS)
    return str(plan.get("network", "")), patterns, layers


def _recipe(text: object, where: str) -> Recipe:
    if not isinstance(text, str):
        raise ConfigurationError(f"{where}: a recipe is a text such as 'identity', not a {type(text).__name__}")
    try:
        return Recipe.parse(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} is given twice; keep one of them", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)
