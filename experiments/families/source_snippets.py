"""Text classification: which packages of Python's standard library some tokens of source code come from.

A batch is a dictionary of `input_ids`, `attention_mask` and `labels`, as tokenizers and datasets of texts make them.
"""

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.compressors.errors import DataError
from plywise.env.task.task import Task
from plywise.experiments.families.bert import TextClasses
from plywise.experiments.families.standard_library import folder, package_files

PACKAGES = {
    "asyncio": ("asyncio",),
    "email": ("email",),
    "importlib": ("importlib",),
    "multiprocessing": ("multiprocessing",),
    "unittest": ("unittest",),
    "web": ("html", "http", "urllib", "wsgiref", "xmlrpc"),
    "xml": ("xml",),
}
"""Classes, and the packages that each is made of."""
TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+|[^\s\w]")
PAD, UNKNOWN, START = range(3)
VOCABULARY = 1024
"""Tokens that are told apart, with the three special ones."""
LENGTHS = 24, 63
"""Tokens of a snippet, fewest and most."""
LENGTH = LENGTHS[1] + 1
"""Places of an input: a start token, the snippet, padding."""
EACH = {"train": 1024, "validation": 72, "test": 72}
"""Snippets of each class."""
BATCH = 64

Snippets = dict[str, Tensor]


@cache
def files_of(split: str) -> tuple[tuple[str, ...], ...]:
    """Returns the texts of the files of a split, for each class; no file is in two splits."""
    return tuple(_texts(name, split) for name in PACKAGES)


def _texts(name: str, split: str) -> tuple[str, ...]:
    files = [path for package in PACKAGES[name] for path in package_files(package)]
    texts = sorted((path.read_text("utf-8", "replace") for path in files), key=lambda text: (len(text), text))
    # By size, so that splits get large and small ones alike.
    places = {"train": (0, 1, 3, 4), "validation": (5,), "test": (2,)}[split]
    found = tuple(text for place, text in enumerate(texts) if place % 6 in places)
    if sum(map(len, found)) < 100 * LENGTHS[1]:
        raise DataError(
            f"the packages {', '.join(PACKAGES[name])} of Python's standard library lack sources in {folder()}; "
            "install them (on Debian: apt install libpython3-stdlib)"
        )
    return found


@cache
def vocabulary() -> dict[str, int]:
    """Returns the numbers of the tokens that are most frequent in training files."""
    counts = Counter(token for texts in files_of("train") for text in texts for token in TOKEN.findall(text))
    common = sorted(counts, key=lambda token: (-counts[token], token))[: VOCABULARY - START - 1]
    return {token: number for number, token in enumerate(common, START + 1)}


def snippets(split: str) -> list[Snippets]:
    """Returns batches of `input_ids` and `attention_mask` `(64, 64)` int64, and `labels` `(64,)` of a split."""
    generator = np.random.default_rng(list(EACH).index(split))
    numbers = vocabulary()
    rows, labels = [], []
    for label, texts in enumerate(files_of(split)):
        ids = np.array([numbers.get(token, UNKNOWN) for text in texts for token in TOKEN.findall(text)])
        for _ in range(EACH[split]):
            length = int(generator.integers(LENGTHS[0], LENGTHS[1] + 1))
            start = generator.integers(len(ids) - length)
            rows.append(np.pad(np.append(START, ids[start : start + length]), (0, LENGTHS[1] - length)))
            labels.append(label)
    order = generator.permutation(len(labels))
    inputs = torch.from_numpy(np.stack(rows)[order])
    columns = inputs, (inputs != PAD).long(), torch.tensor(labels)[torch.from_numpy(order)]
    names = "input_ids", "attention_mask", "labels"
    return [
        dict(zip(names, some, strict=True))
        for some in zip(*(torch.split(column, BATCH) for column in columns), strict=True)
    ]


def label_loss(outputs: TextClasses, batch: Snippets) -> Tensor:
    """Returns the mean cross entropy of the labels, nats."""
    return F.cross_entropy(outputs.logits, batch["labels"])


def accuracy(model: nn.Module, batches: Iterable[Snippets]) -> tuple[float, Tensor]:
    """Returns the share of right labels, percent, and 100 or 0 for each snippet `(n,)`."""
    with torch.no_grad():
        outputs = ((model(batch["input_ids"], batch["attention_mask"]), batch["labels"]) for batch in batches)
        values = torch.cat([100.0 * (found.logits.argmax(1) == labels) for found, labels in outputs])
    return float(values.double().mean()), values


def make_task() -> Task:
    """Returns the task of telling where sources come from."""
    return Task(snippets("train"), snippets("validation"), snippets("test"), metric=accuracy, loss=label_loss)
