"""A page of results: printed for whoever waits, and kept as Markdown with the command that remakes it."""

import datetime
import platform
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from plywise.env.costs.device import Device
from plywise.experiments.workbench.plots import save

FOLDER = Path("experiments/results")


class Page:
    """Collects text, tables and pictures, then prints and writes them."""

    def __init__(self, name: str, command: str, seconds: float) -> None:
        self.name = name
        self.parts: list[str | Table] = []
        self.figures: dict[str, Figure] = {}
        self.markdown = [
            f"# {name.replace('_', ' ')}",
            f"`{command}` ({seconds:.0f} s), {datetime.date.today().isoformat()}, {Device.here().name}, "
            f"Python {platform.python_version()}, torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}.",
        ]

    def text(self, text: str) -> None:
        """Adds a paragraph."""
        self.parts.append(text)
        self.markdown.append(text)

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Adds a table; the first column is text, the others are figures."""
        shown = Table()
        for place, heading in enumerate(headings):
            shown.add_column(heading, justify="right" if place else "left")
        for row in rows:
            shown.add_row(*row)
        self.parts.append(shown)
        ruler = "|".join(["---", *["---:"] * (len(headings) - 1)])
        lines = ["| " + " | ".join(cells) + " |" for cells in (headings, *rows)]
        self.markdown.append("\n".join([lines[0], f"|{ruler}|", *lines[1:]]))

    def figure(self, figure: Figure, shows: str) -> None:
        """Adds a picture; `shows` says what is in it, for who reads and for who cannot see it."""
        file = f"{self.name}_{len(self.figures) + 1}.svg"
        self.figures[file] = figure
        self.text(shows)
        self.markdown.append(f"![{shows.replace('[', '(').replace(']', ')')}]({file})")

    def write(self, console: Console) -> Path:
        """Prints the page, writes it with its pictures below `experiments/results` and returns its path."""
        for part in self.parts:
            console.print(part)
        FOLDER.mkdir(parents=True, exist_ok=True)
        for file, figure in self.figures.items():
            save(figure, FOLDER / file)
        path = FOLDER / f"{self.name}.md"
        path.write_text("\n\n".join(self.markdown) + "\n", encoding="utf-8")
        console.print(f"written to {path}")
        return path
