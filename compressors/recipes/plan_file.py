"""Files of plans and schemes: YAML, put together from several files, with named recipes.

    plywise: plan/1
    import: [base.yaml]                                  # files beside this one, read first
    recipes: {light: low_rank(ratio=0.4) + uniform_quantization(bits=6)}
    patterns: {'*': light, 'layer3.*': light(ratio=0.6)}
    layers: {conv1: identity}

Later files and sections win, name by name: what is given again keeps its place in the order and takes the new recipe.
Recipes are texts here, so nothing of this module needs torch.
"""

import sys
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import ConfigurationError, FileFormatError, unknown_name

FORMAT = "plan/1"
IMPORT, RECIPES, PATTERNS, LAYERS = "import", "recipes", "patterns", "layers"
SECTIONS = ("plywise", IMPORT, "network", RECIPES, PATTERNS, LAYERS)
"""What a file of a plan may hold."""


@dataclass(frozen=True)
class Written:
    """A recipe as it is written, and where."""

    text: str
    where: str


@dataclass
class PlanTexts:
    """What one or several files come to.

    Attributes:
        network: that it was made for; empty where no file says.
        recipes, patterns, layers: recipes by name, by pattern and by layer.
    """

    network: str = ""
    recipes: dict[str, Written] = field(default_factory=dict)
    patterns: dict[str, Written] = field(default_factory=dict)
    layers: dict[str, Written] = field(default_factory=dict)

    def take(self, later: "PlanTexts") -> None:
        """Takes over what a later file says; a name that it gives as a layer is no pattern any more, and conversely."""
        self.network = later.network or self.network
        self.recipes |= later.recipes
        for mine, theirs, other in (
            (self.patterns, later.patterns, self.layers),
            (self.layers, later.layers, self.patterns),
        ):
            mine |= theirs
            for name in theirs:
                other.pop(name, None)


def read_plan_files(paths: Iterable[Path]) -> PlanTexts:
    """Returns what files come to with all that they import; a file that is imported twice counts where it is first.

    Args:
        paths: the last one wins.

    Raises:
        FileFormatError: if a file is missing or no plan, if files import each other in a circle, or if no recipe is
            given to any layer or pattern.
        ConfigurationError: on an unknown section, and on a recipe that is no text.
    """
    found, paths, read = PlanTexts(), tuple(paths), set[Path]()
    for path in paths:
        _read(path, found, read, ())
    if not found.patterns and not found.layers:
        raise FileFormatError(
            f"{' and '.join(map(str, paths))} gives no layer a recipe: a plan must hold '{LAYERS}', '{PATTERNS}' "
            "or both"
        )
    return found


def write_plan_file(
    path: Path,
    network: str,
    *,
    comments: Mapping[str, str] | None = None,
    heading: str = "",
    **sections: Mapping[str, str],
) -> None:
    """Writes recipes by pattern, by layer, or both as YAML, atomically.

    Args:
        path: file to write.
        network: that they were made for.
        comments: what to write behind layers, by name.
        heading: a comment above all.
        sections: recipes by name.
    """
    lines = [f"# {line}" for line in heading.splitlines()]
    lines += yaml.safe_dump({"plywise": FORMAT, "network": network}, sort_keys=False, width=sys.maxsize).splitlines()
    for section, recipes in sections.items():
        lines.append(f"{section}:" if recipes else f"{section}: {{}}")
        for name, text in recipes.items():
            entry = yaml.safe_dump({name: text}, width=sys.maxsize).rstrip("\n").replace("\n", "\n  ")
            comment = (comments or {}).get(name, "")
            lines.append(f"  {entry}  # {comment}" if comment else f"  {entry}")
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _read(path: Path, found: PlanTexts, read: set[Path], importing: tuple[Path, ...]) -> None:
    """Reads a file, what it imports first; `importing` are the files that are waiting for it."""
    here = path.resolve()
    if here in importing:
        circle = (*importing[importing.index(here) :], here)
        raise FileFormatError(
            f"files import each other in a circle: {' -> '.join(each.name for each in circle)}; leave one import out"
        )
    if here in read:
        return
    content = _content(path, importing)
    for other in _imports(path, content):
        _read(other, found, read, (*importing, here))
    read.add(here)
    found.take(_texts(path, content))


def _content(path: Path, importing: tuple[Path, ...]) -> dict[Any, Any]:
    by = f", which {importing[-1]} imports," if importing else ""
    if importing and not path.is_file():
        raise FileFormatError(f"{path}{by} does not exist; paths are those seen from the file that imports")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise FileFormatError(f"{path}{by} cannot be read as a plan: {error}") from error
    plan = content if isinstance(content, dict) and content.get("plywise") == FORMAT else {}
    given = [plan[section] for section in (RECIPES, PATTERNS, LAYERS) if plan.get(section) is not None]
    if not (given or plan.get(IMPORT)) or not all(isinstance(section, dict) for section in given):
        raise FileFormatError(
            f"{path}{by} is not a plan: it must begin with 'plywise: {FORMAT}' and hold '{LAYERS}', '{PATTERNS}' or "
            f"both; it may import others ('{IMPORT}') and name recipes ('{RECIPES}')"
        )
    return plan


def _imports(path: Path, content: Mapping[Any, Any]) -> list[Path]:
    given = content.get(IMPORT) or []
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FileFormatError(f"{path}: '{IMPORT}' takes a file or a list of files, such as [base.yaml]")
    return [path.parent / name for name in names]


def _texts(path: Path, content: Mapping[Any, Any]) -> PlanTexts:
    recipes, patterns, layers = (
        {str(name): _written(text, f"{path}, {what} {name}") for name, text in (content.get(section) or {}).items()}
        for section, what in ((RECIPES, "recipe"), (PATTERNS, "pattern"), (LAYERS, "layer"))
    )
    for key in content:
        if key not in SECTIONS:
            raise unknown_name(f"section of {path}", str(key), SECTIONS)
    for name in patterns:
        if name in layers:
            raise ConfigurationError(f"{path} gives {name!r} under 'patterns' and under 'layers'; keep one of them")
    return PlanTexts(str(content.get("network") or ""), recipes, patterns, layers)


def _written(text: object, where: str) -> Written:
    if not isinstance(text, str):
        raise ConfigurationError(f"{where}: a recipe is a text such as 'identity', not a {type(text).__name__}")
    return Written(text, where)


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
