"""What a user gets: plan, ONNX file, packed weights and report, each checked against what was scored."""

import tempfile
from pathlib import Path
from typing import Any

from plywise.compressors.recipes.plan import Plan
from plywise.env.network.samples import Samples
from plywise.env.prices.pricing import original_storage
from plywise.env.recovery.recovery import Recovered
from plywise.env.recovery.recovery_state import STATE_FILE
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.runtime import ONE_THREAD, time_models
from plywise.env.score.demand import Demand
from plywise.env.subject import Subject
from plywise.experiments.handover.files import CHECKED, ONNX, PLAN, REPORT, check_files, checksum, write_json
from plywise.experiments.handover.measuring import figures, measured_energies
from plywise.experiments.handover.report import Origin, make_report
from plywise.experiments.handover.run_folder import UNFINISHED
from plywise.experiments.handover.uniform_int8 import uniform_plan
from plywise.experiments.networks.loading import WEIGHTS


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

    Args:
        subject: the network under study.
        plan: how to compress it.
        demand: what was wanted.
        test: samples that nothing has looked at yet.
        folder: that is `claimed`.
        origin: for the report.
        recovered: the plan's network after fine-tuning; it is put together anew where None.

    Raises:
        ModelError: if a file does not give what was scored.
    """
    model = subject.bank.stitch(plan).model.eval() if recovered is None else recovered.model
    uniform = subject.bank.stitch(uniform_plan(subject)).model.eval()
    plan.save(folder / PLAN)
    subject.pack(model, folder / WEIGHTS)
    any_batch = export_onnx(model, subject.network.example, folder / ONNX)
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / "original.onnx", Path(scratch) / "uniform.onnx", folder / ONNX]
        export_onnx(subject.network.model, subject.network.example, paths[0])
        export_onnx(uniform, subject.network.example, paths[1])
        uniform_bytes = subject.pack(uniform, Path(scratch) / "uniform")
        device = subject.latency.device
        execution, batch = device.execution if device.is_here else ONE_THREAD, device.batch if any_batch else 1
        timings = time_models(paths, (batch, *subject.network.example.shape[1:]), execution)
        energies, counter = measured_energies(subject, paths)
        sizes = [path.stat().st_size for path in paths]
    storage = (
        original_storage(subject.network),
        float(uniform_bytes),
        float((folder / WEIGHTS).stat().st_size),
    )
    models = (subject.network.model, uniform, model)
    blocks = [
        figures(subject, each, test, size, onnx, timing, energy) | {"batch": batch}
        for each, size, onnx, timing, energy in zip(models, storage, sizes, timings, energies, strict=True)
    ]
    check_files(subject, model, test, blocks[-1]["accuracy"], folder)
    report = make_report(subject, plan, demand, origin, blocks, recovered) | {"energy_counter": counter}
    report["checksums"] = {name: checksum(folder / name) for name in CHECKED}
    write_json(report, folder / REPORT)
    for name in (STATE_FILE, UNFINISHED):
        (folder / name).unlink(missing_ok=True)
    return report
