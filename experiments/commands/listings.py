"""What there is to choose from, as tables."""

import dataclasses

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plywise.agent.search.agent_search import AgentSearch
from plywise.agent.search.methods import SEARCH_METHODS
from plywise.compressors.errors import unknown_name
from plywise.compressors.recipes.technique import techniques as all_techniques
from plywise.env.costs.declared_devices import DECLARED, Figure
from plywise.experiments.networks.zoo import ZOO

DATASETS = (
    ("digits", "scikit-learn's 1,797 handwritten digits, 8x8; needs no files"),
    ("mnist:PATH", "folder with MNIST's four IDX files, gzipped"),
    ("cifar10:PATH", "zipped or plain image folder, or the python or binary batches"),
    ("folder:PATH", "any image folder: train/<class>/ and test/<class>/ or val/<class>/; --size where sizes differ"),
)


def show_list(what: str) -> None:
    """Prints the techniques, networks, datasets, methods or devices; raises ConfigurationError on anything else."""
    lists = {
        "techniques": techniques,
        "networks": networks,
        "datasets": datasets,
        "methods": methods,
        "devices": devices,
    }
    if what not in lists:
        raise unknown_name("list", what, lists)
    Console().print(lists[what]())


def techniques() -> Table:
    """Returns a table of all registered techniques; two columns, so that 80 characters are enough."""
    table = Table(show_lines=True)
    table.add_column("technique", no_wrap=True)
    table.add_column("what it costs and saves, its hyperparameters (the values that are tried) and its source")
    table.add_row("identity", "nothing changes")
    for name, technique in sorted(all_techniques().items(), key=lambda item: (item[1].stage, item[0])):
        fields = (
            f"[cyan]{field.name}[/]: {', '.join(map(str, field.metadata['grid']))}"
            for field in dataclasses.fields(technique)
        )
        lines = (technique.summary, *fields, f"[dim]{escape(technique.source)}[/]")
        table.add_row(f"{name}\n[dim]{technique.stage.name}[/]", "\n".join(lines))
    return table


def networks() -> Table:
    """Returns a table of the zoo; three columns, so that 80 characters are enough."""
    table = Table(caption="Networks for mnist and cifar10 need --weights FILE, the others are trained on the spot.")
    for heading in ("network\nfamily", "task\nmetric", "description\ndata"):
        table.add_column(heading, no_wrap=not heading.startswith("description"))
    for name, entry in ZOO.items():
        pairs = (name, entry.family), (entry.task, entry.metric), (entry.description, entry.dataset)
        table.add_row(*(f"{escape(first)}\n[dim]{escape(second)}[/]" for first, second in pairs))
    return table


def datasets() -> Table:
    """Returns a table of the kinds of data."""
    table = Table("dataset", "what it is")
    for name, description in DATASETS:
        table.add_row(name, description)
    return table


def methods() -> Table:
    """Returns a table of the search methods."""
    table = Table("method", "how it looks for a plan")
    for name, kind in {AgentSearch.name: AgentSearch, **{n: type(m) for n, m in SEARCH_METHODS.items()}}.items():
        table.add_row(name, (kind.__doc__ or "").strip().splitlines()[0])
    return table


def devices() -> Table:
    """Returns a table of the declared devices, each figure with its source."""
    table = Table(show_lines=True, caption="Declared, not measured: a roofline model of what is published.")
    table.add_column("device", no_wrap=True)
    table.add_column("its figures and their sources")
    for name, device in DECLARED.items():
        figures = (
            (field.name, getattr(device, field.name)) for field in dataclasses.fields(device) if field.type == Figure
        )
        lines = (f"[cyan]{key}[/]: {value:g} [dim]({escape(source)})[/]" for key, (value, source) in figures)
        table.add_row(f"{name}\n[dim]{device.kind}[/]", "\n".join((device.title, *lines)))
    return table
