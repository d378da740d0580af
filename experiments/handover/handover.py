"""What a user gets: plan, ONNX file, packed weights, report and its page, checked against what was scored."""

import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from plywise.compressors.recipes.plan import Plan
from plywise.env.execution.progress import phase, tracked
from plywise.env.recovery.recovery import Recovered
from plywise.env.recovery.recovery_state import STATE_FILE
from plywise.env.score.demand import Demand
from plywise.env.subject import Subject
from plywise.env.task.samples import Samples
from plywise.experiments.handover.checks import Checks
from plywise.experiments.handover.files import (
    PLAN,
    REPORT,
    check_onnx,
    check_weights,
    checksums,
    write_json,
    write_network,
)
from plywise.experiments.handover.layer_costs import SHARES, layer_costs, share_comments
from plywise.experiments.handover.measuring import figures, measure_files, score_file
from plywise.experiments.handover.report import Origin, make_report
from plywise.experiments.handover.run_folder import UNFINISHED
from plywise.experiments.handover.uniform_int8 import uniform_format, uniform_plan
from plywise.experiments.pages.report_page import REPORT_PAGE, write_report_page

ORIGINAL, UNIFORM_INT8, UNIFORM, COMPRESSED = "original", "uniform_int8", "uniform", "compressed"
"""Networks that the report compares, and the names of their blocks."""


def hand_over(
    subject: Subject,
    plan: Plan,
    demand: Demand,
    test: Samples,
    folder: Path,
    origin: Origin,
    recovered: Recovered | None = None,
) -> dict[str, Any]:
    """Writes the compressed network into `folder`, checks the files and returns the report.

    A check that fails is told in the report, by whose figures the demand is not met then: what a search has found is
    never thrown away.

    Args:
        subject: the network under study.
        plan: how to compress it.
        demand: what was wanted.
        test: samples that nothing has looked at yet.
        folder: that is `claimed`.
        origin: for the report.
        recovered: the plan's network after fine-tuning; it is put together anew where None.

    Raises:
        OSError: where a file cannot be written; the same command goes on from there.
    """
    plans = {UNIFORM_INT8: uniform_plan(subject), UNIFORM: origin.uniform, COMPRESSED: plan}
    models, called = {ORIGINAL: subject.network.model}, subject.network.name
    with phase(tracked, f"{called}: putting the networks together"):
        models |= {name: subject.bank.stitch(each).model.eval() for name, each in plans.items() if each is not None}
    if recovered is not None:
        models[COMPRESSED] = recovered.model
    checks = Checks()
    plan.save(folder / PLAN)
    with tempfile.TemporaryDirectory() as scratch:
        places = {name: folder if name == COMPRESSED else Path(scratch) / name for name in models}
        each = tracked(list(reversed(models)), f"{called}: writing files")
        files = {name: write_network(subject, models[name], places[name], name, checks) for name in each}
        with phase(tracked, f"{called}: running and timing the files"):
            measured = measure_files(subject, {name: files[name] for name in models}, test, checks)
        each = tracked(list(models), f"{called}: scoring the networks in torch")
        scores = {name: test.score(models[name]) for name in each}
        blocks = {
            name: figures(subject, model, scores[name], files[name], measured.files[name]) | {"batch": measured.batch}
            for name, model in models.items()
        }
    blocks[UNIFORM_INT8] |= uniform_format(subject.latency.device)
    if files[COMPRESSED].weights_bytes is not None:
        check_weights(subject, models[COMPRESSED], test, files[COMPRESSED].weights, checks)
    found = measured.files[COMPRESSED].score
    if found is not None:
        onnx = files[COMPRESSED].onnx
        plainly = partial(score_file, subject.network, onnx, test, optimised=False)
        check_onnx(onnx, test.judge, scores[COMPRESSED], found, plainly, checks)
    by_layer = {"before": layer_costs(subject, models[ORIGINAL]), "after": layer_costs(subject, models[COMPRESSED])}
    plan.save(folder / PLAN, comments=share_comments(plan, by_layer), heading=SHARES)
    with phase(tracked, f"{called}: writing the report"):
        report = make_report(subject, plan, demand, origin, blocks, checks, recovered, by_layer)
    report |= {"energy_counter": measured.counter, "checksums": checksums(folder)}
    report["interface"] = subject.network.interface.report(bool(files[COMPRESSED].any_batch))
    write_json(report, folder / REPORT)
    for name in (STATE_FILE, UNFINISHED):
        (folder / name).unlink(missing_ok=True)
    _write_page(report, folder)
    return report


def _write_page(report: Mapping[str, Any], folder: Path) -> None:
    """Writes the page, last of all: where that fails, nothing else is lost."""
    try:
        write_report_page(report, folder)
    except Exception as error:  # a full disk, a font, whatever: the hand-over is whole without its page
        print(
            f"note: {folder / REPORT_PAGE} could not be written ({error}); {folder / REPORT} holds all that it shows",
            file=sys.stderr,
        )
