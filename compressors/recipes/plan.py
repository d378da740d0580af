"""A plan: a recipe for every layer of one network, as plain YAML that people read and edit."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.compressors.recipes.named_recipes import NamedRecipes
from plywise.compressors.recipes.plan_file import read_plan_files, write_plan_file
from plywise.compressors.recipes.technique import Recipe


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

    def save(self, path: Path, comments: Mapping[str, str] | None = None, heading: str = "") -> None:
        """Writes the plan as YAML, atomically, with comments behind layers and a heading where they are given."""
        texts = {name: str(recipe) for name, recipe in self.recipes.items()}
        write_plan_file(path, self.network, comments=comments, heading=heading, layers=texts)

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Reads a plan.

        Raises:
            FileFormatError: if the file is not a plan.
            ConfigurationError: if a recipe in it is not valid; the message names the layer.
        """
        network, patterns, layers = read_recipes([path])
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


def read_recipes(paths: Iterable[Path]) -> tuple[str, dict[str, Recipe], dict[str, Recipe]]:
    """Returns the network's name and the recipes by pattern and by layer that files come to, the last one winning.

    Raises:
        FileFormatError: if a file is not a plan.
        ConfigurationError: if a recipe in it is not valid; the message names the layer.
    """
    found = read_plan_files(paths)
    named = NamedRecipes(found.recipes)
    patterns, layers = (
        {name: named.read(recipe) for name, recipe in section.items()} for section in (found.patterns, found.layers)
    )
    return found.network, patterns, layers
