"""Every technique alone, the most useful pairs and what others do, without fine-tuning, against what is asked.

`python -m plywise.experiments.studies.technique_table` studies the ResNet-20 of `PLYWISE_DATA` and writes
`experiments/results/technique_table.md`; an interrupted run goes on where it stopped. `digits` makes the same table for
three small networks, trained on the spot.
"""

import dataclasses
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from plywise.compressors.errors import PlywiseError
from plywise.compressors.recipes.technique import Recipe, Technique
from plywise.env.bank.bank import Bank, Stitched
from plywise.env.bank.repair import NONE
from plywise.env.costs.chains import realised_chain
from plywise.env.execution.executor import NoSetup
from plywise.env.execution.process_pool import ProcessPool
from plywise.env.execution.progress import tracked
from plywise.env.prices.pricing import original_storage
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.runtime import run_model, time_models, timing_inputs
from plywise.env.storage.code_digest import code_digest
from plywise.env.storage.result_store import ResultStore
from plywise.env.subject import Subject
from plywise.env.task.outputs import divergences
from plywise.env.task.samples import Labelled, accuracy
from plywise.experiments.commands.study import Study, samples, study
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.handover.uniform_int8 import UNIFORM
from plywise.experiments.workbench import contrasts
from plywise.experiments.workbench.contrasts import Made, Maker, plain_decomposition, static_quantiser, torch_pruning
from plywise.experiments.workbench.contrasts import torchao_weights as torchao
from plywise.experiments.workbench.kept_runs import CODE
from plywise.experiments.workbench.results_page import Page
from plywise.experiments.workbench.study_files import resnet_files
from plywise.experiments.workbench.technique_rows import (
    GLOBAL_THRESHOLD,
    HALF,
    HALF_PRUNED,
    PAIRS,
    Bar,
    alone,
    one_of_each,
    plan_of,
)

DIGITS = ("digits-resnet-a", "digits-vit", "digits-mobilenet")
ORIGINAL = "identity"
STATIC = "ONNX Runtime: static quantiser, 8 bits"
TORCHAO = {bits: f"torchao: weights of {bits} bits" for bits in (8, 4)}
PLAIN = {sides: f"plain decomposition, sides={sides}, BatchNorm recalibrated" for sides in HALF}
CUT_INNER = "Torch-Pruning: L2, same channels, BatchNorm recalibrated"
CUT_ALL = "Torch-Pruning: L2, all channels, BatchNorm recalibrated"

BARS = (
    Bar("8-bit weights and activations: drop at most", UNIFORM, 0.3),
    Bar("4-bit weights: drop at most", "uniform_quantization(bits=4)", 0.3),
    Bar("3-bit weights: drop at most", "uniform_quantization(bits=3)", 1.2),
    Bar("2-bit weights: drop at most", "uniform_quantization(bits=2, scheme=affine)", 5.0),
    Bar("half of the weights zero: drop at most", "magnitude_pruning(sparsity=0.5)", 0.8),
    Bar("2:4 zeros: drop at most", "nm_sparsity(keep=2)", 1.5),
    Bar("half the macs by low rank: drop at most", HALF["spatial"], 10.0),
    *(Bar("half the macs by low rank: lead of at least", HALF["spatial"], 10.0, PLAIN[s]) for s in ("output", "both")),
    Bar("half the macs by filter pruning: lead of at least", HALF_PRUNED, 15.0, CUT_INNER),
    Bar("half the macs by filter pruning: lead of at least", HALF_PRUNED, 15.0, CUT_ALL),
    Bar("8-bit weights and activations: no worse", UNIFORM, 0.0, STATIC),
    Bar("8-bit weights: no worse", "uniform_quantization(bits=8)", 0.0, TORCHAO[8]),
    Bar("4-bit weights: no worse", "uniform_quantization(bits=4)", 0.0, TORCHAO[4]),
)

HEADINGS = (
    *("what", "accuracy", "drop", "divergence", "bytes", "of the original", "macs", "latency ms", "speed-up"),
    *("seconds", "left"),
)


@dataclass(frozen=True)
class Figures:
    """What was found about one row.

    Attributes:
        accuracy: of the ONNX file on the test images, percent.
        divergence: of its outputs for them from the original's, nats.
        made: how it was made.
        latency_ms: median of one image, one thread.
        speed_up: the original's median, timed interleaved with it, divided by that.
    """

    accuracy: float
    divergence: float
    made: Made
    latency_ms: float = 0.0
    speed_up: float = 1.0


Found = Mapping[str, Figures | str]
"""Figures by row, or the reason why there are none."""


def main(folder: Path = Path("runs/technique_table"), test_images: int | None = None) -> None:
    """Measures ResNet-20 and writes the page.

    Args:
        folder: of what an interrupted run has found.
        test_images: how many; all where None.

    Raises:
        DataError: if `PLYWISE_DATA` does not name the folder of the data.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    weights, data = resnet_files()
    dataset = load_dataset(data)
    found = study("resnet20", dataset, weights)
    test = found.images if test_images is None else samples(dataset.test, test_images)
    figures = timed(found.subject, measured(found.subject, test, folder, rows()), folder)
    page = Page(
        "technique_table", "python -m plywise.experiments.studies.technique_table", time.perf_counter() - started
    )
    _explain(page)
    page.text(f"ResNet-20 on CIFAR-10 (JPEG copy), {len(test):,} test images. What is asked, in points of accuracy:")
    _bars(page, figures)
    _table(page, found.subject, figures)
    page.write(Console())


def digits(folder: Path = Path("runs/technique_table"), networks: Sequence[str] = DIGITS) -> None:
    """Measures networks of the digits side by side and writes the page; an interrupted run goes on."""
    started = time.perf_counter()
    subjects = [_digits(name).subject for name in networks]
    with ProcessPool(min(os.cpu_count() or 1, len(networks)), NoSetup()) as pool:
        runs = list(pool.results(DigitsRows(name, folder) for name in networks))
    timings = [timed(subject, found, folder) for subject, found in zip(subjects, runs, strict=True)]
    command = "python -c 'from plywise.experiments.studies import technique_table; technique_table.digits()'"
    page = Page("technique_table_digits", command, time.perf_counter() - started)
    _explain(page)
    for subject, figures in zip(subjects, timings, strict=True):
        page.text(f"{subject.network.name}, the 360 test images of the digits:")
        _table(page, subject, figures)
    page.write(Console())


def rows(short: bool = False) -> dict[str, Maker]:
    """Returns what makes each row, by name, the original first.

    Args:
        short: whether one setting of each technique will do.
    """
    single = one_of_each(alone()) if short else alone()
    ours = (ORIGINAL, *single, GLOBAL_THRESHOLD, *PAIRS)
    plain = {PLAIN[sides]: plain_decomposition(_technique(name)) for sides, name in HALF.items() if name in ours}
    return {
        **{name: partial(compressed, name) for name in dict.fromkeys(ours)},
        **plain,
        CUT_INNER: torch_pruning(False, _half_pruned_macs),
        CUT_ALL: torch_pruning(True, _half_pruned_macs),
        STATIC: static_quantiser,
        **{name: torchao(bits) for bits, name in TORCHAO.items()},
    }


def compressed(name: str, subject: Subject, path: Path) -> Made:
    """Compresses all layers alike with a bank of its own, so that no row profits from another, and writes the file."""
    started = time.perf_counter()
    plan, refused = plan_of(subject.network, name)
    stitched = Bank(subject.network, subject.bank.calibration).stitch(plan)
    seconds = time.perf_counter() - started
    export_onnx(stitched.model, subject.network.interface, path)
    if name == ORIGINAL:
        stored = original_storage(subject.network)
    else:
        packed = path.with_suffix(".weights")
        stored = subject.pack(stitched.model, packed)
        packed.unlink()
    return Made(stored, _macs(subject, stitched), seconds, refused)


def measured(subject: Subject, test: Labelled, folder: Path, makers: Mapping[str, Maker]) -> dict[str, Figures | str]:
    """Returns the figures of all rows without their latency; those of an earlier run with the same code are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    store = ResultStore(folder / "figures.sqlite")
    found: dict[str, Figures | str] = {}
    original = None
    for name, make in tracked(makers.items(), f"{subject.network.name}: techniques"):
        path = _onnx(subject, name, folder)
        key = f"{path.stem}/{test.digest()}"
        kept = store.get(key)
        if kept is not None and path.exists():
            found[name] = Figures(kept["accuracy"], kept["divergence"], Made(**kept["made"]))
            continue
        try:
            made = make(subject, path)
        except PlywiseError as reason:
            found[name] = str(reason)
            continue
        logits = run_model(path, test.inputs)
        original = test.logits(subject.network.model) if original is None else original
        figures = Figures(accuracy(logits, test.labels), float(divergences(logits, original).mean()), made)
        store.put(key, dataclasses.asdict(figures))
        found[name] = figures
    return found


def timed(subject: Subject, found: Found, folder: Path) -> dict[str, Figures | str]:
    """Returns the figures with latencies, each file timed interleaved with the original."""
    inputs = timing_inputs(subject.network.interface, 1)
    original = _onnx(subject, ORIGINAL, folder)
    result: dict[str, Figures | str] = {}
    for name, figures in found.items():
        if isinstance(figures, Figures):
            base, own = time_models([original, _onnx(subject, name, folder)], inputs)
            figures = dataclasses.replace(figures, latency_ms=own.median_ms, speed_up=base.median_ms / own.median_ms)
        result[name] = figures
    return result


def _digits(name: str) -> Study:
    return study(name, load_dataset("digits"), progress=False)


@dataclass(frozen=True)
class DigitsRows:
    """The task of measuring all rows of one network; its figures are kept in the folder as they come."""

    network: str
    folder: Path
    key: None = None

    def run(self, _: None) -> dict[str, Figures | str]:
        """Returns the figures of all rows without their latency."""
        found = _digits(self.network)
        return measured(found.subject, found.images, self.folder, rows(short=True))


def _technique(name: str) -> Technique:
    (technique,) = Recipe.parse(name).techniques
    return technique


def _macs(subject: Subject, stitched: Stitched) -> int:
    modules = {**subject.network.modules, **stitched.replaced}
    chains = (realised_chain(modules[layer.name], layer) for layer in subject.layers)
    return sum(operation.macs for chain in chains for operation in chain)


def _half_pruned_macs(subject: Subject) -> int:
    return _macs(subject, subject.bank.stitch(plan_of(subject.network, HALF_PRUNED)[0], NONE))


def _onnx(subject: Subject, name: str, folder: Path) -> Path:
    """Returns where the file of a row lies; another one once the code that makes it has changed."""
    code = code_digest(*CODE, contrasts.__name__)
    digest = hashlib.sha256(f"{subject.key}{name}{code}".encode())
    return folder / f"{subject.network.name}-{digest.hexdigest()[:20]}.onnx"


def _explain(page: Page) -> None:
    page.text(
        "No fine-tuning. Each recipe on all layers of the network; structures spare the first and the last layer. "
        "Drop: points of accuracy on the test images, of the ONNX file in ONNX Runtime. Divergence: of its outputs "
        "from the original's, thousandths of a nat. Where it is small, few outputs change, and which way is chance: "
        "then a lead of some hundredths of a point says nothing, and the divergence does. Bytes: of the packed file; "
        "of files of others their own format, torchao's as bits a weight and a float32 scale for each output channel. "
        "Macs: share of the original's. Latency: ONNX Runtime, batch 1, one thread, median; speed-up against the "
        "original interleaved. Seconds: to compress and to match moments; the calibration that all rows share, and "
        "export, left out. Left: layers that stay as they are because the recipe does not suit them. Torch-Pruning is "
        f"set to the macs of {HALF_PRUNED}. The plain decompositions that are asked to be beaten are the SVD of the "
        "weight matrix (output) and Tucker-2 (both); the plain spatial and input ones, which do better, are rows too."
    )


def _table(page: Page, subject: Subject, found: Found) -> None:
    original = found[ORIGINAL]
    assert isinstance(original, Figures)
    lines = []
    for name, figures in found.items():
        if isinstance(figures, str):
            lines.append((f"{name}: {figures}", *[""] * (len(HEADINGS) - 1)))
            continue
        made = figures.made
        lines.append(
            (
                name if name != ORIGINAL else "original",
                f"{figures.accuracy:.2f}",
                f"{original.accuracy - figures.accuracy:.2f}",
                f"{1e3 * figures.divergence:.3g}",
                f"{made.storage_bytes:,.0f}",
                f"1/{original.made.storage_bytes / made.storage_bytes:.1f}",
                f"{100 * made.macs / original.made.macs:.0f} %",
                f"{figures.latency_ms:.3f}",
                f"{figures.speed_up:.2f}",
                f"{made.seconds:.1f}",
                f"{made.refused} of {len(subject.layers)}" if made.refused else "",
            )
        )
    page.table(HEADINGS, lines)


def _bars(page: Page, found: Found) -> None:
    measured = {name: figures for name, figures in found.items() if isinstance(figures, Figures)}
    accuracy = {name: figures.accuracy for name, figures in measured.items()}
    lines = []
    for bar in BARS:
        against = f" against {bar.against}" if bar.against else ""
        if bar.row in accuracy and bar.against in (*accuracy, None):
            figure = bar.figure(accuracy, accuracy[ORIGINAL])
            divergences = (measured[name].divergence for name in (bar.row, bar.against) if name is not None)
            outcome = (
                f"{figure:.2f}",
                "yes" if bar.met(figure) else "NO",
                " against ".join(f"{1e3 * each:.3g}" for each in divergences),
            )
        else:
            outcome = ("", "not measured", "")
        lines.append((bar.what, f"{bar.row}{against}", f"{bar.asked:g}", *outcome))
    page.table(("what is asked", "row", "asked", "found", "met", "divergence"), lines)


if __name__ == "__main__":
    main()
