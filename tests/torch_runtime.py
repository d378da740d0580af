"""A runtime that nothing has to be exported for: torch runs what would have been."""

from plywise.env.runtime.runtime import Timing
from plywise.env.task.samples import labelled
from plywise.experiments.handover import files, measuring


class TorchRuntime:
    """Takes the place of export, runs and timing of the files of a hand-over.

    Attributes:
        changed: what is done to the outputs of each file.
    """

    def __init__(self, monkeypatch):
        self.networks = {}
        self.changed = lambda path, outputs: outputs
        monkeypatch.setattr(files, "export_onnx", self.export)
        monkeypatch.setattr(files, "run_model", self.run)
        monkeypatch.setattr(measuring, "run_model", self.run)
        monkeypatch.setattr(measuring, "time_models", lambda paths, *_: [Timing(1.0, 0.9, 1.1)] * len(paths))

    def export(self, model, example, path):
        path.write_bytes(b"onnx")
        self.networks[path] = model
        return True

    def run(self, path, images, optimised=True):
        outputs = labelled(images, images).logits(self.networks[path])
        return self.changed(path, outputs) if optimised else outputs
