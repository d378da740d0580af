"""Code that a user copies to run the result, with the real names and shapes of its inputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Report = Mapping[str, Any]

MOST_CLASSES = 20
"""Names of classes that are listed."""


def snippets(report: Report, folder: Path) -> dict[str, str]:
    """Returns code by the name of what runs it.

    Args:
        report: of a hand-over.
        folder: that it lies in.
    """
    inputs, outputs = report["interface"]["inputs"], report["interface"]["outputs"]
    onnx = repr(str(folder / "model.onnx"))
    arrays = ", ".join(f"{each['name']!r}: numpy.zeros({_shape(each)}, numpy.{_numpy(each)})" for each in inputs)
    found = {
        "PyTorch": _torch(report, folder),
        "ONNX Runtime": "\n".join(
            (
                "import numpy, onnxruntime",
                "options = onnxruntime.SessionOptions()",
                f"options.intra_op_num_threads = {report['device']['threads'] or 1}",
                f"session = onnxruntime.InferenceSession({onnx}, options, "
                f"providers=[{report['device']['provider']!r}])",
                f"inputs = {{{arrays}}}  # yours, prepared as above",
                f"{_targets(outputs)} = session.run({outputs!r}, inputs)",
            )
        ),
        "OpenVINO": "\n".join(
            (
                "import numpy, openvino",
                "core = openvino.Core()",
                f"network = core.compile_model({onnx}, 'CPU')",
                f"inputs = {{{arrays}}}  # yours, prepared as above",
                "found = network(inputs)",
                f"{_targets(outputs)} = [found[name] for name in {outputs!r}]",
            )
        ),
        "unpacking model.onnx.xz": "\n".join(
            (
                "import lzma, pathlib",
                f"content = lzma.open({str(folder / 'model.onnx.xz')!r}).read()",
                "pathlib.Path('model.onnx').write_bytes(content)",
            )
        ),
    }
    return found if report["compressed"]["onnx_bytes"] is not None else {"PyTorch": found["PyTorch"]}


def _torch(report: Report, folder: Path) -> str:
    interface, given = report["interface"], report["architecture"]
    tensors = [f"torch.zeros({_shape(each)}, dtype=torch.{each['type']})" for each in interface["inputs"]]
    if given is None:
        network = (
            f"plywise.load({str(folder)!r}, model)  # model: your network as it was given; its weights are not used"
        )
    elif ":" not in given or given.startswith("zoo:"):
        network = f"plywise.load({str(folder)!r})"
    else:
        network = f"plywise.load({str(folder)!r}, {given!r})"
    call = {
        "tensor": "network(inputs)",
        "keywords": "network(**inputs)",
        "nested": "network(inputs)  # call it as you called the original",
    }[interface["called"]]
    if interface["called"] == "tensor":
        inputs = tensors[0]
    else:
        inputs = "{" + ", ".join(f"{e['name']!r}: {t}" for e, t in zip(interface["inputs"], tensors, strict=True)) + "}"
    return "\n".join(
        (
            "import plywise, torch",
            f"network = {network}",
            f"inputs = {inputs}  # yours, prepared as above",
            "with torch.no_grad():",
            f"    outputs = {call}",
        )
    )


def contract(report: Report) -> list[str]:
    """Returns in words what goes in and what comes out."""
    interface = report["interface"]
    lines = [
        f"input {each['name']}: {each['type']} of shape ({', '.join(str(size) for size in each['shape'])})"
        for each in interface["inputs"]
    ]
    images = report["preprocessing"]
    if images is None:
        lines.append("prepared as the batches that the network was compressed with")
    else:
        lines.append(f"images, height x width: {images['in_words']}; then (pixels - mean) / std, channels first")
    lines.append(f"outputs: {', '.join(interface['outputs'])}")
    classes = report["classes"]
    if classes:
        more = f", and {len(classes) - MOST_CLASSES} more" if len(classes) > MOST_CLASSES else ""
        lines.append(f"classes, in the order of the outputs: {', '.join(classes[:MOST_CLASSES])}{more}")
    return [*lines, f"judged by {report['metric']['name']}"]


def _shape(each: Mapping[str, Any]) -> str:
    sizes = [1 if size == "batch" else size for size in each["shape"]]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(map(str, sizes))})"


def _numpy(each: Mapping[str, Any]) -> str:
    return "bool_" if each["type"] == "bool" else str(each["type"])


def _targets(outputs: list[str]) -> str:
    """Returns names of variables for outputs; what is not one of Python's names is numbered."""
    names = [name if name.isidentifier() else f"output_{place}" for place, name in enumerate(outputs)]
    return f"[{', '.join(names)}]"
