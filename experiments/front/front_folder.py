"""The folder of a front: `front.html`, `front.json`, `front.csv`, `front.svg` and a plan for each point.

It is whole after every point, so that it can be looked at while the search goes on.
"""

import csv
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from plywise.agent.search.front import knee, unbeaten
from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.compressors.plain_values import as_json, as_number, as_whole
from plywise.compressors.recipes.plan import Plan
from plywise.env.prices.prices import METRICS
from plywise.experiments.front.front_picture import Estimated, picture
from plywise.experiments.pages.rendering import rendered

FORMAT = "plywise-front/1"
FILE, TABLE, PICTURE, PAGE, PLANS = "front.json", "front.csv", "front.svg", "front.html", "plans"

PICTURE_SECONDS = 5.0
"""For which a picture stays as it is: to draw one takes half a second."""

NUMBERS = ("drop", *METRICS)
"""What plans are compared by: points lost, and shares of the original's costs."""


@dataclass(frozen=True)
class Row:
    """A plan that was scored exactly.

    Attributes:
        number: by which it is picked; in the order of the scores.
        found_by: who proposed it.
        drop: points lost on the validation samples.
        storage, latency, energy: shares of the original's.
        storage_bytes, latency_ms, energy_mj: the same in their units.
    """

    number: int
    found_by: str
    drop: float
    storage: float
    latency: float
    energy: float
    storage_bytes: float
    latency_ms: float
    energy_mj: float

    @property
    def plan(self) -> str:
        """The file of its plan, in the folder."""
        return f"{PLANS}/{self.number:03d}.yaml"


@dataclass
class FrontFolder:
    """What is known of a front so far.

    Attributes:
        path: the folder.
        options: of the run, by name: those that say what is compressed.
        about: what else a reader wants to know: network, data, device, metric, seed.
        max_drop: points, of the run.
        rows: all plans scored.
        estimated: what the price table says, once it is known.
        finished: whether the search has come to its end.
    """

    path: Path
    options: Mapping[str, Any]
    about: Mapping[str, Any]
    max_drop: float
    rows: list[Row] = field(default_factory=list)
    estimated: Estimated | None = None
    finished: bool = False
    _drawn: float = -math.inf

    @property
    def front(self) -> list[Row]:
        """The plans that no other one beats in all of accuracy and costs, by the points that they lose."""
        kept = unbeaten([[getattr(row, name) for name in NUMBERS] for row in self.rows])
        return sorted((row for row, good in zip(self.rows, kept, strict=True) if good), key=lambda row: row.drop)

    @property
    def rough(self) -> bool:
        """Whether there are only plans with one recipe for all layers yet, which need no price table."""
        return all(row.found_by == "uniform" for row in self.rows)

    @property
    def shown(self) -> list[Row]:
        """The plans of the front that are worth looking at: those that lose at most `max_drop`."""
        return [row for row in self.front if row.drop <= self.max_drop]

    @property
    def knee(self) -> Row:
        """The plan of the front from which on savings of bytes and time begin to cost most accuracy.

        Raises:
            ConfigurationError: where no plan loses at most `max_drop`.
        """
        allowed = self.shown
        if not allowed:
            raise ConfigurationError(f"{self.path} has no plan that loses at most {self.max_drop:g} points; pick one")
        return allowed[knee([(row.storage * row.latency) ** 0.5 for row in allowed], [row.drop for row in allowed])]

    def add(self, row: Row, plan: Plan) -> None:
        """Takes a plan in and renews the folder."""
        (self.path / PLANS).mkdir(parents=True, exist_ok=True)
        plan.save(self.path / row.plan)
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        """Renews all files but the plans, each atomically; picture and page now and then, and at the end."""
        on_front = {row.number for row in self.front}
        points = [asdict(row) | {"front": row.number in on_front, "plan": row.plan} for row in self.rows]
        content = {
            "plywise": FORMAT,
            "options": self.options,
            "about": self.about,
            "max_drop": self.max_drop,
            "finished": self.finished,
            "points": points,
        }
        write_atomically(self.path / FILE, json.dumps(as_json(content), indent=1, allow_nan=False).encode())
        write_atomically(self.path / TABLE, _csv(points).encode())
        now = time.monotonic()
        if self.finished or now - self._drawn >= PICTURE_SECONDS:
            self._drawn = now
            drawn = picture(self.rows, on_front, self.max_drop, self.estimated)
            write_atomically(self.path / PICTURE, drawn)
            page = rendered("front.html", found=self, picture=Markup(drawn[drawn.index(b"<svg") :].decode()))
            write_atomically(self.path / PAGE, page.encode())

    def picked(self, number: int | None) -> Row:
        """Returns the plan of a number, or the knee where there is none.

        Raises:
            ConfigurationError: on a number that no plan has.
        """
        if number is None:
            return self.knee
        found = next((row for row in self.rows if row.number == number), None)
        if found is None:
            raise ConfigurationError(
                f"{self.path} has no plan {number}; its front is {', '.join(str(row.number) for row in self.front)} "
                f"(see {self.path / TABLE})"
            )
        return found

    @classmethod
    def load(cls, path: Path) -> "FrontFolder":
        """Reads a folder.

        Raises:
            FileFormatError: if it is not one, or damaged.
        """
        try:
            content = json.loads((path / FILE).read_bytes())
            if content["plywise"] != FORMAT:
                raise ValueError(content["plywise"])
            rows = [_row(row) for row in content["points"]]
            options, about, most = dict(content["options"]), dict(content["about"]), float(content["max_drop"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            hint = "give the folder that 'plywise pareto' wrote"
            raise FileFormatError(f"{path} does not hold a front (no valid {FILE}: {error}); {hint}") from error
        return cls(path, options, about, most, rows, finished=bool(content.get("finished")))


def _row(given: Mapping[str, Any]) -> Row:
    """Returns what a file says of a plan; raises ValueError where a figure is no number."""
    fields = {name: given[name] for name in Row.__dataclass_fields__}
    figures = {name: as_number(value) for name, value in fields.items() if name != "found_by"}
    if None in figures.values() or not isinstance(fields["found_by"], str) or as_whole(fields["number"]) is None:
        raise ValueError(f"a point holds {fields}")
    return Row(**fields)


def _csv(points: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(points[0]) if points else ["number"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    return text.getvalue()
