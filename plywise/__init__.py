"""Plywise: an agent that picks, for each layer of a network, how to compress it.

>>> import plywise
>>> report = plywise.compress("zoo:digits-lenet", data="digits", out="runs/lenet", method="knapsack", max_storage=0.15)
>>> model = plywise.load("runs/lenet")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__version__ = "0.1.0"


def compress(
    model: str,
    data: str,
    out: str | Path,
    *,
    agent: str | Path | None = None,
    method: str | None = None,
    plan: str | Path | None = None,
    weights: str | Path | None = None,
    evaluations: int = 4,
    seed: int = 0,
    recover: str | None = None,
    epochs: int | None = None,
    incremental: bool = False,
    gradients: str | None = None,
    gradients_of: str | Sequence[str] = (),
    device: str | Path | None = None,
    repair: str | Sequence[str] = (),
    memory: float | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    **demand: float | None,
) -> dict[str, Any]:
    """Compresses a network and returns the report that is also written to `out`.

    Args:
        model: `zoo:NAME`, `package.module:factory` or `path.py:factory`.
        data: `digits`, `mnist:PATH`, `cifar10:PATH` or `folder:PATH`.
        out: folder to write.
        agent: folder of a trained agent.
        method: who searches where no agent is given, such as `knapsack`.
        plan: a plan to apply instead of searching, or a scheme: recipes by name pattern or type.
        weights: a state dict.
        evaluations: plans that are scored exactly, at most.
        seed: of every random choice.
        recover: `finetune` or `distill` (the original as the teacher) trains the compressed network on.
        epochs: passes of that over the training images, 3 where None.
        incremental: round weights portion by portion in it.
        gradients: what rounds gradients in it, such as `dynamic_fixed_point(width=8)`.
        gradients_of: which of them: `weights`, `biases`, `errors`, a list or one of them; all where empty.
        device: where the network will run: a declared device such as `raspberry-pi-4`, or a device file; this machine
            where None.
        repair: which parts of the repair of compressed networks are done, to see what each is worth: `means`,
            `deviations`, `least_squares`, a list or one of them, or `none`; all where empty.
        memory: GiB that compressed layers and outputs kept for the next score may take; a quarter of the machine's
            where None.
        mean: what is taken from each channel of the images after scaling to [0, 1], as when the network was trained,
            one number or one a channel; the dataset's usual one, or that of its training images, where None.
        std: what each channel is divided by then, likewise.
        demand: fields of `plywise.env.score.demand.Demand`, such as `max_storage=0.15`.

    Raises:
        PlywiseError: on anything that can be fixed; the message says how.
    """
    options = {name: value for name, value in locals().items() if name not in ("out", "memory", "demand")} | demand
    from plywise.env.storage.memory import limit_memory
    from plywise.experiments.commands.compression_settings import make_compression
    from plywise.experiments.compress_model import compress_model

    limit_memory(memory)
    return compress_model(make_compression(options), Path(out))


def load(path: str | Path, model: "nn.Module | str | None" = None) -> "nn.Module":
    """Returns a compressed network in eval mode, from its folder or its `weights.safetensors`. Executes no code in it.

    Args:
        path: what `compress` wrote.
        model: the original architecture (its weights do not matter), or its name as in `compress`; only needed for
            networks outside the zoo.

    Raises:
        PlywiseError: if the file is damaged or the architecture is not known.
    """
    from plywise.experiments.networks.loading import load_compressed

    return load_compressed(Path(path), model)
