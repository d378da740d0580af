"""A plan: a recipe for every layer of one network, as plain YAML that people read and edit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.compressors.recipe import Recipe

FORMAT = "plan/1"


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
        content = {
            "plywise": FORMAT,
            "network": self.network,
            "layers": {name: str(recipe) for name, recipe in self.recipes.items()},
        }
        text = yaml.safe_dump(content, sort_keys=False, width=1000)
        write_atomically(path, text.encode())

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Reads a plan.

        Raises:
            FileFormatError: if the file is not a plan.
            ConfigurationError: if a recipe in it is not valid; the message names the layer.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
            raise FileFormatError(f"{path} cannot be read as a plan: {error}") from error
        layers = content.get("layers") if isinstance(content, dict) and content.get("plywise") == FORMAT else None
        if not isinstance(layers, dict):
            raise FileFormatError(f"{path} is not a plan: it must begin with 'plywise: {FORMAT}' and hold 'layers'")
        recipes = {}
        for name, text in layers.items():
            if not isinstance(text, str):
                raise ConfigurationError(
                    f"{path}, layer {name}: a recipe is a text such as 'identity', not a {type(text).__name__}"
                )
            try:
                recipes[str(name)] = Recipe.parse(text)
            except ConfigurationError as error:
                raise ConfigurationError(f"{path}, layer {name}: {error}") from error
        return cls(str(content.get("network", "")), recipes)

    def check(self, layers: tuple[str, ...]) -> None:
        """Raises ConfigurationError, naming the first mismatch, unless the plan covers exactly `layers`."""
        for name in layers:
            if name not in self.recipes:
                raise ConfigurationError(
                    f"the plan for {self.network!r} has no recipe for layer {name!r} of this network; give the plan of "
                    "this network, or write 'identity' for a layer that should stay as it is"
                )
        for name in self.recipes:
            if name not in layers:
                raise ConfigurationError(
                    f"the plan for {self.network!r} names layer {name!r}, which this network does not have; "
                    f"its layers are {', '.join(layers[:8])}{', ...' if len(layers) > 8 else ''}"
                )
