"""A scheme: recipes by name pattern and type of layer, from which the plan of any network follows."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from plywise.compressors.errors import ConfigurationError, UnsupportedLayerError
from plywise.compressors.recipes.plan import Plan, read_recipes
from plywise.compressors.recipes.plan_file import write_plan_file
from plywise.compressors.recipes.technique import Recipe, Technique
from plywise.env.network.network import Network

TYPE = "type:"


@dataclass(frozen=True)
class Scheme:
    """Recipes by layer name (`conv1`), name pattern (`layer3.*`, `*.conv2`, `*`) or type (`type:Linear`).

    A layer's own name beats every pattern; among patterns the last that matches a layer decides, so the general ones
    are written first. Without any pattern a scheme must name all layers; with one, others stay as they are.

    Attributes:
        recipes: by name or pattern, in order.
        network: the network that it was made for, if any.
    """

    recipes: Mapping[str, Recipe]
    network: str = ""

    @classmethod
    def of(cls, recipes: Mapping[str, Recipe | Technique | str]) -> "Scheme":
        """Returns a scheme from recipes in any form.

        >>> Scheme.of({"*": "uniform_quantization(bits=4)", "type:Linear": LowRank(0.4) + Codebook(bits=4)})
        """
        if not isinstance(recipes, Mapping):
            raise ConfigurationError(
                f"recipes={recipes!r} is a {type(recipes).__name__} and must be a dictionary of recipes by name"
            )
        for name in recipes:
            if not isinstance(name, str):
                raise ConfigurationError(f"{name!r} is a {type(name).__name__}; names and patterns of layers are texts")
        return cls({name: Recipe.of(recipe) for name, recipe in recipes.items()})

    @classmethod
    def load(cls, *paths: Path) -> "Scheme":
        """Reads a plan or a scheme, or several files of them of which the last one wins.

        Raises:
            FileFormatError: if a file is neither.
            ConfigurationError: if a recipe in one is not valid, or a name is given twice.
        """
        network, patterns, layers = read_recipes(paths)
        for name in layers:
            if is_pattern(name):
                given = " and ".join(map(str, paths))
                raise ConfigurationError(f"{given} has the pattern {name!r} under 'layers'; write it under 'patterns'")
        return cls({**patterns, **layers}, network)

    def save(self, path: Path) -> None:
        """Writes the scheme as YAML, atomically."""
        patterns, layers = (
            {name: str(recipe) for name, recipe in self.recipes.items() if is_pattern(name) == which}
            for which in (True, False)
        )
        write_plan_file(path, self.network, patterns=patterns, layers=layers)

    def on(self, network: Network) -> tuple[Plan, dict[str, str]]:
        """Returns the plan of a network, and why layers take no more than a part of the recipe of their pattern.

        Raises:
            ConfigurationError: if a name or a pattern fits no layer.
            UnsupportedLayerError: if a layer that is named itself cannot take its recipe.
        """
        names = tuple(layer.name for layer in network.layers)
        patterns = [name for name in self.recipes if is_pattern(name)]
        if not patterns:
            Plan(self.network, self.recipes).check(names)
        chosen = dict.fromkeys(names, Recipe())
        refused: dict[str, str] = {}
        for given in (*patterns, *(name for name in self.recipes if name not in patterns)):
            recipe, matched = self.recipes[given], [name for name in names if _matches(given, name, network)]
            if not matched:
                raise ConfigurationError(_fits_nothing(given, network))
            for name in matched:
                reason = network.unsupported(name, recipe)
                if reason is not None and given == name:
                    other = "" if self.network in ("", network.name) else f" (the plan was made for {self.network!r})"
                    raise UnsupportedLayerError(
                        f"layer {name!r} cannot take {recipe}: {reason}; choose another recipe{other}"
                    )
                chosen[name], reasons = (recipe, []) if reason is None else _part(network, name, recipe)
                refused.pop(name, None)
                if reasons:
                    kept = f"given only {chosen[name]}" if chosen[name].techniques else "left as it is"
                    refused[name] = f"{kept}, {given!r} does not fit it: {'; '.join(reasons)}"
        return Plan(network.name, chosen), refused

    def overridden(self, network: Network) -> dict[str, list[str]]:
        """Returns the patterns that decide no layer of a network, each with those that decide its layers instead."""
        by_layer = {}
        for layer in network.layers:
            matching = [given for given in self.recipes if _matches(given, layer.name, network)]
            by_layer[layer.name] = sorted(matching, key=lambda given: not is_pattern(given))  # the last one decides
        lost: dict[str, list[str]] = {}
        for given in self.recipes:
            deciding = [matching[-1] for matching in by_layer.values() if given in matching]
            if given not in deciding:
                lost[given] = list(dict.fromkeys(deciding))
        return lost


def _part(network: Network, name: str, recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Returns the techniques of a recipe that a layer can take one after the other, and why not the others."""
    kept, reasons = Recipe(), []
    for technique in recipe.techniques:
        reason = network.unsupported(name, kept + technique)
        if reason is None:
            kept += technique
        else:
            reasons.append(reason)
    return kept, reasons


def is_pattern(name: str) -> bool:
    """Returns whether a name stands for any number of layers."""
    return name.startswith(TYPE) or any(sign in name for sign in "*?[")


def _matches(given: str, layer: str, network: Network) -> bool:
    if given.startswith(TYPE):
        return type(network.modules[layer]).__name__ == given.removeprefix(TYPE)
    return fnmatchcase(layer, given) if is_pattern(given) else layer == given


def _fits_nothing(given: str, network: Network) -> str:
    if given in network.skipped:
        return f"layer {given!r} cannot be compressed: {network.skipped[given]}; leave it out"
    names = [layer.name for layer in network.layers]
    if given.startswith(TYPE):
        kinds = sorted({type(network.modules[name]).__name__ for name in names})
        return f"{given!r} fits no layer of {network.name}; its layers are of type {', '.join(kinds)}"
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.0)
    return f"{given!r} fits no layer of {network.name}; the nearest are {', '.join(near)}"
