"""Lines per folder and in total, tests apart: `make size`."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

LAYERS = ("compressors", "env", "agent", "experiments", "plywise", "tests")


def folders(root: Path) -> list[Path]:
    """Returns the folders with Python files below a checkout, in the order of the layers; links are not followed."""
    found = []
    for layer in LAYERS:
        inner = sorted(path.parent for path in (root / layer).rglob("__init__.py") if path.parent != root / layer)
        found += [root / layer, *inner]
    return found


def main() -> None:
    """Prints the table, the largest files first in each folder."""
    root = Path.cwd()
    table = Table("folder", "files", "lines", "largest files")
    for folder in folders(root):
        sizes = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in folder.glob("*.py")}
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:2]
        shown = ", ".join(f"{name} {lines}" for name, lines in largest)
        table.add_row(str(folder.relative_to(root)), str(len(sizes)), f"{sum(sizes.values()):,}", shown)
    Console().print(table)


if __name__ == "__main__":
    main()
