"""Lines per file and in total, tests apart: `make size`."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

FOLDERS = ("compressors", "env", "agent", "experiments", "plywise", "tests")


def main() -> None:
    """Prints the table, the largest files first in each folder."""
    table = Table("folder", "files", "lines", "largest files")
    for folder in FOLDERS:
        sizes = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in Path(folder).glob("*.py")}
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:4]
        shown = ", ".join(f"{name} {lines}" for name, lines in largest)
        table.add_row(folder, str(len(sizes)), f"{sum(sizes.values()):,}", shown)
    Console().print(table)


if __name__ == "__main__":
    main()
