"""Where a run of fine-tuning stands: one file from which a killed run goes on as if it had not been killed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.compressors.tensor_file import TensorFile

STATE_FILE = "recovery.safetensors"
"""Its name in the folder of an unfinished run."""

FILE = TensorFile("recovery/2", "delete it to start fine-tuning anew", "torch")
PARTS = ("network", "best", "moments")


@dataclass(frozen=True, eq=False)
class RecoveryState:
    """Everything that changes in fine-tuning.

    Attributes:
        step: batches trained on so far.
        accuracies: on the validation samples, before the first epoch and after each so far.
        sizes: of the packed file, bytes, likewise.
        network, best: `TrainableNetwork.state` now and at the best epoch.
        moments: of the optimiser, by name.
    """

    step: int
    accuracies: tuple[float, ...]
    sizes: tuple[int, ...]
    network: dict[str, Tensor]
    best: dict[str, Tensor]
    moments: dict[str, Tensor]

    def write(self, path: Path, asked: Mapping[str, Any]) -> None:
        """Writes the state, atomically; makes the folder where it is missing.

        Args:
            path: of the file.
            asked: what the run was asked to do, as JSON values.
        """
        tensors = {f"{part}/{name}": value for part in PARTS for name, value in getattr(self, part).items()}
        header = {"asked": asked, "step": self.step, "accuracies": self.accuracies, "sizes": self.sizes}
        FILE.write(path, tensors, header)

    @classmethod
    def read(cls, path: Path, asked: Mapping[str, Any]) -> Self | None:
        """Reads the state, None where there is none; executes no code.

        Raises:
            ConfigurationError: the run was asked to do something else.
            FileFormatError: the file is damaged.
        """
        if not path.exists():
            return None
        tensors, header = FILE.read(path)
        try:
            given, step = header["asked"], int(header["step"])
            accuracies, sizes = tuple(map(float, header["accuracies"])), tuple(map(int, header["sizes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise FileFormatError(f"{path} is no whole state ({error!r}); {FILE.remedy}") from error
        if given != json.loads(json.dumps(asked)):
            raise ConfigurationError(
                f"{path} is of another run (other network, data, plan or options); go on with that one, or delete the "
                "file to start anew"
            )
        parts = {part: _part(tensors, part) for part in PARTS}
        return cls(step, accuracies, sizes, **parts)


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.partition("/")[2]: value for name, value in tensors.items() if name.startswith(f"{part}/")}
