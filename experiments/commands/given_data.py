"""What the arguments of `plywise.compress` say about data: a dataset's name, or a task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plywise.compressors.errors import ConfigurationError
from plywise.env.task.task import Task
from plywise.experiments.commands.option_kinds import PATH, TEXT, check_kind


def data_of(
    given: Mapping[str, Any], data: str | None, task: Task | str | None, out: str | Path
) -> dict[str, Task | str | None]:
    """Returns the options `data` and `task`.

    Args:
        given: what a task is made of, by name; `calibration` may be a task or a dataset's name itself.
        data: a dataset's name.
        task: a task, or `path.py:make_task`.
        out: the folder to write.

    Raises:
        ConfigurationError: where several say what the data are, or parts come with no calibration data.
    """
    if out is None or not str(out):
        raise ConfigurationError("which folder shall be written? Give out, such as 'runs/mine'")
    check_kind("out", out, PATH)
    if data is not None:
        check_kind("data", data, TEXT)
    if task is not None and not isinstance(task, Task | str):
        raise ConfigurationError(
            f"task={task!r} is a {type(task).__name__} and must be a plywise.Task, or a text: 'path.py:make_task'"
        )
    calibration = given["calibration"]
    parts = {name: value for name, value in given.items() if name != "calibration" and value not in (None, "%")}
    said = [name for name, value in (("calibration", calibration), ("data", data), ("task", task)) if value is not None]
    if len(said) > 1:
        raise ConfigurationError(f"{' and '.join(said)} were given; one of them says what the data are")
    if isinstance(calibration, Task | str):
        data, task = (calibration, None) if isinstance(calibration, str) else (None, calibration)
    elif calibration is not None:
        return {"data": None, "task": Task(**given)}
    if parts:
        raise ConfigurationError(
            f"{', '.join(parts)} belong to calibration data that are given as an iterable of batches; put them "
            "into the Task, or leave them out"
        )
    return {"data": data, "task": task}
