"""What there is to choose from: one line each, and all that is known of one by its name."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console

from plywise.compressors.errors import unknown_name

Details = tuple[tuple[str, str], ...]

DATASETS = (
    ("digits", "scikit-learn's 1,797 handwritten digits, 8x8; needs no files"),
    ("mnist:PATH", "folder with MNIST's four IDX files, gzipped"),
    ("cifar10:PATH", "zipped or plain image folder, or the python or binary batches"),
    ("folder:PATH", "any image folder: train/<class>/ and test/<class>/ or val/<class>/; --size where sizes differ"),
)


@dataclass(frozen=True)
class Entry:
    """Something to choose.

    Attributes:
        name: what users write.
        summary: one line about it.
        kind: of things alike, under which it is listed; empty where there are no kinds.
        details: what else is known of it, by name.
    """

    name: str
    summary: str
    kind: str = ""
    details: Details = ()


def show_list(what: str, name: str | None = None, as_json: bool = False) -> None:
    """Prints the techniques, networks, datasets, methods or devices, or one of them with its details.

    Args:
        what: which list.
        name: of the one to explain; all, a line each, where None.
        as_json: print JSON instead.

    Raises:
        ConfigurationError: where there is no such list, or nothing of this name in it.
    """
    if what not in LISTS:
        raise unknown_name("list", what, LISTS)
    entries = LISTS[what]()
    if name is not None:
        entries = [entry for entry in entries if entry.name == name]
        if not entries:
            raise unknown_name(what.removesuffix("s"), name, [entry.name for entry in LISTS[what]()])
    if as_json:
        found = [{**dataclasses.asdict(entry), "details": dict(entry.details)} for entry in entries]
        print(json.dumps(found if name is None else found[0], indent=2))
    elif name is not None:
        _show_one(entries[0], Console())
    else:
        _show_all(entries, what, Console())


def techniques() -> list[Entry]:
    """Returns all registered techniques, in the order of their stages."""
    from plywise.compressors.recipes.technique import techniques as all_techniques  # brings torch along

    found = [Entry("identity", "nothing changes")]
    for name, technique in sorted(all_techniques().items(), key=lambda item: (item[1].stage, item[0])):
        fields = dataclasses.fields(technique)
        details = [(each.name, _hyperparameter(each)) for each in fields]
        details.append(("source", technique.source))
        found.append(Entry(name, technique.summary, technique.stage.name, tuple(details)))
    return found


def networks() -> list[Entry]:
    """Returns the zoo."""
    from plywise.experiments.networks.zoo import ZOO  # brings torch along

    return [
        Entry(
            name,
            f"{entry.description}; {entry.dataset}",
            entry.task,
            (
                ("family", entry.family),
                ("data", entry.dataset),
                ("metric", entry.metric),
                ("weights", "give --weights FILE" if entry.training is None else "trained on the spot"),
            ),
        )
        for name, entry in sorted(ZOO.items(), key=lambda item: item[1].task)
    ]


def datasets() -> list[Entry]:
    """Returns the kinds of data."""
    return [Entry(name, description) for name, description in DATASETS]


def methods() -> list[Entry]:
    """Returns the search methods."""
    from plywise.agent.search.agent_search import AgentSearch  # brings torch along
    from plywise.agent.search.methods import SEARCH_METHODS

    kinds = {AgentSearch.name: AgentSearch, **{name: type(method) for name, method in SEARCH_METHODS.items()}}
    return [Entry(name, (kind.__doc__ or "").strip().splitlines()[0]) for name, kind in kinds.items()]


def devices() -> list[Entry]:
    """Returns the declared devices, each figure with its source."""
    from plywise.env.costs.declared_devices import DECLARED, Figure

    found = []
    for name, device in DECLARED.items():
        figures = {each.name: getattr(device, each.name) for each in dataclasses.fields(device) if each.type == Figure}
        details = tuple((key, f"{value:g} ({source})") for key, (value, source) in figures.items())
        found.append(Entry(name, device.title, device.kind, details))
    return found


LISTS: dict[str, Callable[[], list[Entry]]] = {
    "techniques": techniques,
    "networks": networks,
    "datasets": datasets,
    "methods": methods,
    "devices": devices,
}


def _hyperparameter(field: "dataclasses.Field[object]") -> str:
    tried = ", ".join(map(str, field.metadata["grid"]))
    return f"{field.metadata['help']}; {field.default} where not given; tried: {tried}"


def _show_all(entries: Sequence[Entry], what: str, console: Console) -> None:
    """Prints a line each under their kinds; names are never cut."""
    width = max(len(entry.name) for entry in entries)
    for kind, some in _by_kind(entries):
        if kind:
            _line(f"{kind}:", console, style="dim")
        for entry in some:
            _line(f"  {entry.name:<{width}}  {entry.summary}", console)
    if any(entry.details for entry in entries):
        _line(f"all about one of them: plywise list {what} NAME", console, style="dim")


def _show_one(entry: Entry, console: Console) -> None:
    kind = f" ({entry.kind})" if entry.kind else ""
    console.print(f"{entry.name}{kind}: {entry.summary}", markup=False, highlight=False)
    for key, value in entry.details:
        console.print(f"  {key}: {value}", markup=False, highlight=False)


def _by_kind(entries: Iterable[Entry]) -> list[tuple[str, list[Entry]]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.kind, []).append(entry)
    return list(found.items())


def _line(text: str, console: Console, style: str | None = None) -> None:
    """Prints one line; it is cut where a terminal, or `COLUMNS`, says how much is seen."""
    if console.is_terminal or "COLUMNS" in os.environ:
        console.print(text, markup=False, highlight=False, style=style, no_wrap=True, overflow="ellipsis")
    else:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
