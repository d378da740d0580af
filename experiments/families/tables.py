"""Tables that come with scikit-learn: tumours to classify, and a disease's progress to predict."""

from collections.abc import Iterable

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.env.task.task import Task
from plywise.experiments.families.classification import accuracy, cross_entropy

BATCH = 32
SHARE = 5
"""A fifth of the rows each is for validation and test."""

SPLITS = ("train", "validation", "test")

Rows = tuple[Tensor, Tensor]


def table(name: str, split: str) -> list[Rows]:
    """Returns batches of columns `(32, columns)` float32, standardised by those of training, and targets `(32,)`.

    Args:
        name: `cancer`, whose targets are classes, or `diabetes`, whose are standardised numbers, float32.
        split: `train`, `validation` or `test`.
    """
    columns, targets = {"cancer": load_breast_cancer, "diabetes": load_diabetes}[name](return_X_y=True)
    order, part = np.random.default_rng(0).permutation(len(columns)), len(columns) // SHARE
    places = {"validation": order[:part], "test": order[part : 2 * part], "train": order[2 * part :]}
    known = places["train"]
    inputs = (columns - columns[known].mean(0)) / columns[known].std(0)
    if name == "diabetes":
        targets = ((targets - targets[known].mean()) / targets[known].std()).astype(np.float32)
    chosen = inputs[places[split]].astype(np.float32), targets[places[split]]
    return list(zip(*(torch.split(torch.from_numpy(values), BATCH) for values in chosen), strict=True))


def squared_error(outputs: Tensor, batch: Rows) -> Tensor:
    """Returns the mean squared error of predictions `(n, 1)`."""
    return F.mse_loss(outputs[:, 0], batch[1])


def r2(model: nn.Module, batches: Iterable[Rows]) -> float:
    """Returns the share of the targets' variance that predictions explain, at most 1; a figure of all rows together."""
    with torch.no_grad():
        pairs = [(model(columns)[:, 0], targets) for columns, targets in batches]
    found, wanted = (torch.cat(column).double() for column in zip(*pairs, strict=True))
    return float(1 - (found - wanted).square().sum() / (wanted - wanted.mean()).square().sum())


def cancer_task() -> Task:
    """Returns the task of telling malignant tumours from benign ones."""
    train, validation, test = (table("cancer", split) for split in SPLITS)
    return Task(train, validation, test, metric=accuracy, loss=cross_entropy)


def diabetes_task() -> Task:
    """Returns the task of predicting how far a disease will be in a year."""
    train, validation, test = (table("diabetes", split) for split in SPLITS)
    return Task(train, validation, test, metric=r2, loss=squared_error, unit="R2")
