"""Language modelling: the next byte of sources of Python's standard library.

A batch is one tensor of bytes; what a network puts out at each place is held against the byte that follows.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.env.task.task import Task
from plywise.experiments.families.standard_library import texts

CONTEXT = 128
"""Bytes of a sequence."""
BATCH = 64
COUNTS = {"train": 8_192, "validation": 512, "test": 512}
"""Sequences of each split."""
MODULES = {
    "train": (
        *("argparse", "ast", "bdb", "calendar", "codecs", "configparser", "contextlib", "csv", "dataclasses"),
        *("difflib", "dis", "doctest", "enum", "filecmp", "fractions", "ftplib", "functools", "getopt", "gettext"),
        *("gzip", "heapq", "imaplib", "inspect", "locale", "mailbox", "mimetypes", "optparse", "os", "pdb"),
        *("pickletools", "platform", "plistlib", "pprint", "profile", "pydoc", "random", "selectors", "shelve"),
        *("shutil", "site", "smtplib", "socket", "ssl", "statistics", "subprocess", "tarfile", "tempfile"),
        *("threading", "trace", "turtle", "typing", "uuid", "warnings", "weakref", "zipapp"),
    ),
    "validation": ("cmd", "copy", "ipaddress", "pickle", "tokenize", "traceback", "webbrowser"),
    "test": ("bz2", "fileinput", "pstats", "queue", "shlex", "socketserver", "textwrap", "timeit", "types", "wave"),
}
"""Those that every Python from 3.11 to 3.14 has, most of them as one file; they hold more bytes than are taken."""


def sequences(split: str) -> list[Tensor]:
    """Returns batches of bytes `(64, 128)` int64 of one split, in random order."""
    count = COUNTS[split]
    text = np.frombuffer(texts(MODULES[split], count * CONTEXT), np.uint8)
    rows = text[: len(text) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    order = np.random.default_rng(0).permutation(len(rows))[:count]
    return list(torch.split(torch.from_numpy(rows[order].astype(np.int64)), BATCH))


def next_byte_loss(logits: Tensor, batch: Tensor) -> Tensor:
    """Returns the mean cross entropy of each byte but the first, given those before it, nats.

    Args:
        logits: `(n, places, 256)`.
        batch: bytes `(n, places)`.
    """
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


def negative_bits_per_byte(model: nn.Module, batches: Iterable[Tensor]) -> tuple[float, Tensor]:
    """Returns minus the bits that each byte costs, the mean and of each sequence `(n,)`."""
    found = []
    with torch.no_grad():
        for batch in batches:
            nats = F.cross_entropy(model(batch)[:, :-1].transpose(1, 2), batch[:, 1:], reduction="none")
            found.append(-nats.mean(1) / math.log(2))
    values = torch.cat(found)
    return float(values.double().mean()), values


def mean_divergence(logits: Tensor, original: Tensor) -> Tensor:
    """Returns the Kullback-Leibler divergence of logits `(n, places, classes)` from the original's `(n,)`, nats."""
    after, before = F.log_softmax(logits, -1), F.log_softmax(original, -1)
    return F.kl_div(after, before, reduction="none", log_target=True).sum(-1).mean(1)


def make_task() -> Task:
    """Returns the task of guessing the next byte."""
    train, validation, test = map(sequences, COUNTS)
    return Task(
        train,
        validation,
        test,
        metric=negative_bits_per_byte,
        loss=next_byte_loss,
        distance=mean_divergence,
        unit="bits per byte",
    )
