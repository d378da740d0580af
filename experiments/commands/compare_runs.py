"""Shows hand-over folders side by side: `plywise compare RUN RUN`."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from plywise.compressors import plain_values
from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.experiments.handover.run_folder import UNFINISHED
from plywise.experiments.pages import comparison
from plywise.experiments.pages.comparison import Row, Run, read_runs

COLUMNS = 4
"""Runs side by side in one table: what is legible in 80 columns."""


def compare_runs(
    folders: Sequence[Path], changes: bool = False, page: Path | None = None, as_json: bool = False
) -> None:
    """Prints what the runs were asked, what they reached and their recipes by layer.

    Args:
        folders: hand-over folders, two or more.
        changes: leave out layers that have the same recipe in all runs.
        page: an HTML file to write as well.
        as_json: print JSON instead of tables.

    Raises:
        PlywiseError: where a folder is no finished hand-over, fewer than two are given, or the page cannot be written.
    """
    if page is not None and (page.is_dir() or not page.absolute().parent.is_dir()):
        raise ConfigurationError(f"--page {page} must be a file in a folder that is there, such as compared.html")
    for folder in folders:
        if (folder / UNFINISHED).is_file():
            raise FileFormatError(
                f"{folder} holds an unfinished run; give the command that began it again: it goes on from there"
            )
    runs = read_runs(folders)
    if as_json:
        print(json.dumps(plain_values.as_json(comparison.as_json(runs, changes)), indent=2, allow_nan=False))
    else:
        show_comparison(runs, changes, Console())
    if page is not None:
        from plywise.experiments.pages.compare_page import write_compare_page  # brings matplotlib along

        write_compare_page(runs, page, changes)
        if not as_json:
            print(f"page: {page}")


def show_comparison(runs: Sequence[Run], changes: bool, console: Console) -> None:
    """Prints the comparison: tables with lines in a terminal, plain columns elsewhere."""
    for run in runs:
        report = run.report
        said = f"{run.letter}  {run.folder}: {report['model']} on {report['data']}, plan by {report['method']}"
        console.print(f"{said}, seed {report['seed']}", soft_wrap=True, markup=False, highlight=False)
    for start in range(0, len(runs), COLUMNS):
        part = slice(start, start + COLUMNS)
        console.print(_table(comparison.figures(runs), runs, part, "compressed (* best)", console))
        console.print(_table(comparison.demands(runs), runs, part, "asked", console))
    _show_recipes(runs, changes, console)
    for note in comparison.notes(runs):
        console.print(f"note: {note}", soft_wrap=True, markup=False, highlight=False)


def _table(rows: Sequence[Row], runs: Sequence[Run], part: slice, heading: str, console: Console) -> Table:
    table = Table(heading, box=_lines(console), pad_edge=False)
    for run in runs[part]:
        table.add_column(run.letter, justify="right")
    for row in rows:
        marked = [f"{value}{' *' if place in row.best else ''}" for place, value in enumerate(row.values)]
        table.add_row(row.name, *marked[part])
    return table


def _show_recipes(runs: Sequence[Run], changes: bool, console: Console) -> None:
    rows = comparison.layers(runs, changes)
    if not rows:
        console.print("all layers have the same recipe in all runs")
        return
    table = Table(box=_lines(console), pad_edge=False)
    for heading in ("layer", "runs", "recipes that differ" if changes else "recipe"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        for place, (letters, recipe) in enumerate(row.by_recipe(runs)):
            table.add_row("" if place else _plain(row.layer), letters, _plain(recipe))
    console.print(table)


def _plain(text: str) -> str:
    """Returns a text that rich prints as it is: brackets in names are no markup."""
    return text.replace("[", r"\[")


def _lines(console: Console) -> box.Box | None:
    return box.SIMPLE if console.is_terminal else None
