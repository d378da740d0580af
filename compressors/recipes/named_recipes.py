"""Recipes that a file names, and others reuse and vary."""

import dataclasses
from collections.abc import Mapping

from plywise.compressors.errors import ConfigurationError, unknown_name
from plywise.compressors.recipes.notation import IDENTITY, parse_recipe
from plywise.compressors.recipes.plan_file import Written
from plywise.compressors.recipes.technique import Recipe, Technique, make_technique, techniques


class NamedRecipes:
    """Reads recipes in which the names of others may stand.

    `light(bits=4)` is the recipe `light` with another setting, `light + codebook(bits=4)` is it with another technique:
    one that is written takes the place of the named recipe's own of the same stage.
    """

    def __init__(self, written: Mapping[str, Written]) -> None:
        """Reads all, so that a mistake in one that nobody uses is told as well.

        Args:
            written: by name.

        Raises:
            ConfigurationError: if a name is that of a technique or cannot stand in a recipe, if a recipe is not valid,
                or if recipes use each other in a circle.
        """
        for name, recipe in written.items():
            if name == IDENTITY or name in techniques():
                raise ConfigurationError(f"{recipe.where}: {name!r} is a technique's name already; take another")
            if not name.isidentifier():
                raise ConfigurationError(
                    f"{recipe.where}: a recipe's name has letters, digits and _ only and begins with none of the digits"
                )
        self._written = written
        self._found: dict[str, Recipe] = {}
        self._open: list[str] = []
        for name in written:
            self._named(name)

    def read(self, recipe: Written) -> Recipe:
        """Returns a recipe as a value; raises ConfigurationError, naming the place, if it is not valid."""
        try:
            return self._parse(recipe.text)
        except _ToldError:
            raise
        except ConfigurationError as error:
            raise _ToldError(f"{recipe.where}: {error}") from error

    def _parse(self, text: str) -> Recipe:
        own: list[Technique] = []
        reused: list[Technique] = []
        for name, settings in parse_recipe(text):
            if name in self._written:
                reused += _varied(name, self._named(name), settings)
            elif name in techniques():
                own.append(make_technique(name, settings))
            else:
                raise unknown_name("technique", name, (*techniques(), *self._written))
        return Recipe(tuple(reused)).with_techniques(Recipe(tuple(own)))

    def _named(self, name: str) -> Recipe:
        if name in self._open:
            circle = " -> ".join((*self._open[self._open.index(name) :], name))
            raise ConfigurationError(f"recipes use each other in a circle: {circle}")
        if name not in self._found:
            self._open.append(name)
            self._found[name] = self.read(self._written[name])
            self._open.pop()
        return self._found[name]


class _ToldError(ConfigurationError):
    """Says where already."""


def _varied(name: str, recipe: Recipe, settings: Mapping[str, object]) -> tuple[Technique, ...]:
    """Returns a named recipe's techniques with other settings."""
    found = list(recipe.techniques)
    for key, value in settings.items():
        places = [place for place, technique in enumerate(found) if key in technique.settings()]
        if not places:
            raise unknown_name(
                f"setting of {name}", key, {each for technique in found for each in technique.settings()}
            )
        if len(places) > 1:
            which = " and ".join(found[place].name for place in places)
            raise ConfigurationError(
                f"{which} of {name} both have {key}; write the one that changes behind it: "
                f"{name} + {found[places[0]].name}({key}={value})"
            )
        found[places[0]] = dataclasses.replace(found[places[0]], **{key: value})
    return tuple(found)
