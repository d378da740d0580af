"""A file with a task to start from, for users who bring their own network, data and metric."""

from pathlib import Path

from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import ConfigurationError

TEMPLATE = '''"""A network, its data and how it is judged, for Plywise. Fill in what is marked with TODO.

    plywise compress --model {name}:make_model --task {name}:make_task --out runs/mine \\\\
        --method knapsack --max-storage 0.15 --max-accuracy-drop 1
"""

import torch
from torch import nn
from torch.nn import functional as F

import plywise


def make_model() -> nn.Module:
    """Returns the trained network."""
    # TODO: build your network and load its weights:
    #   network = MyNetwork()
    #   network.load_state_dict(torch.load("weights.pt", weights_only=True))
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4))


def make_batches(seed: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns batches; a DataLoader does as well, with shuffle=False."""
    # TODO: your data. A batch is a tensor, a tuple or a dictionary. The network is called as model(x), model(*x) or
    # model(**x) with what its forward takes; what it does not take, such as labels, is left out.
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(32, 16, generator=generator) for _ in range(count)]
    return [(x, (x[:, :4] + 0.1 * x[:, 4:8]).argmax(1)) for x in inputs]


def metric(model: nn.Module, batches) -> tuple[float, torch.Tensor]:
    """Returns how good a network is, higher is better, and one value for each item."""
    # TODO: your metric. The model comes in eval mode; leave it so. A plain number is enough; values of items, whose
    # mean the number is, let poor plans be stopped early. Without a metric in the Task, the original is the reference.
    values = torch.cat([100.0 * (model(inputs).argmax(1) == labels) for inputs, labels in batches])
    return float(values.mean()), values


def loss(outputs: torch.Tensor, batch) -> torch.Tensor:
    """Returns what training makes small; used by --recover and to rank channels. May be left out."""
    return F.cross_entropy(outputs, batch[1])


def make_task() -> plywise.Task:
    """Returns data and functions."""
    return plywise.Task(
        calibration=make_batches(seed=0, count=16),  # training data, a few hundred items
        validation=make_batches(seed=1, count=32),  # plans are scored on these
        test=make_batches(seed=2, count=32),  # looked at once, for the report
        metric=metric,
        loss=loss,
        unit="%",
        # forward_step=lambda model, batch: model(batch[0]),  where the rule above does not fit
        # distance=lambda outputs, original: ((outputs - original) ** 2).flatten(1).mean(1),
    )
'''


def write_task_file(path: Path) -> None:
    """Writes the file.

    Raises:
        ConfigurationError: where it is there already, or is no Python file.
    """
    if path.suffix != ".py":
        raise ConfigurationError(f"{path} is no Python file; name one, such as task.py")
    if path.exists():
        raise ConfigurationError(f"{path} is there already; name another file or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, TEMPLATE.format(name=path).encode())
