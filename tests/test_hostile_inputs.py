"""Hostile inputs to commands and Python: each is refused at the door, in one sentence that names what was wrong.

A row says what is called and a piece of the message. Families of bad values over options make up most of the table;
nothing here prices a network, and nothing is written.
"""

import dataclasses
import gzip
import io
import json
import os
import re
import struct
import warnings
import zipfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import plywise
from plywise.__main__ import main
from plywise.agent.learning.ppo import PPOSettings
from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.compressors.errors import PlywiseError
from plywise.compressors.recipes.technique import Recipe
from plywise.env.costs.device_file import DeviceFile
from plywise.env.network.network import Network
from plywise.env.network.scheme import Scheme
from plywise.env.prices.price_file import load_prices
from plywise.env.score.demand import Demand
from plywise.env.task.binding import bind
from plywise.env.task.task import Task
from plywise.experiments.commands.compression_settings import make_compression
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.data.image_source import MOST_BYTES
from plywise.experiments.front.front_folder import FrontFolder
from plywise.experiments.handover.files import write_json
from plywise.experiments.networks.model_loading import load_model, load_task, read_state_dict
from plywise.experiments.pages.report_file import read_report
from plywise.experiments.train_agent import check_rollouts, train_agent

NAN, INF = float("nan"), float("inf")
THING = object()
NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
BATCHES = [torch.zeros(4, 64)]


def named(row):
    """Returns what a row is called: the same in every process, so without the addresses of objects."""
    return re.sub(r" at 0x.*", "", row[0])


def compressing(**options):
    """Returns a call of `plywise.compress` whose other arguments are all right."""
    given = {"data": "digits", "out": "out", "method": "knapsack"} | options
    return lambda: plywise.compress(given.pop("model", NETWORK), **given)


def over(options, values, call=compressing, said="{option}", **others):
    """Yields a row for every option and value; the message names the option where nothing else is said."""
    for option in options:
        for value in values:
            yield f"{option}={value!r:.40}", call(**{option: value}, **others), said.format(option=option)


NO_TEXT = (5, 1.5, True, b"digits", [1], ("a", "b"), {}, THING, 1j)
NO_PATH = (5, 1.5, True, [1], {}, THING, b"runs", "a\0b")
NO_NUMBER = ("a", "0.5", "", [], [0.5], {}, THING, 1j, True, np.bool_(True), NAN, np.float32("nan"), Decimal("0.5"))
NO_SHARE = (*NO_NUMBER, INF, -INF, 0, -1, -0.0, 2, 1e308, 10**400, np.float32(2), np.int64(2), np.array(1.5))
NO_WEIGHT = (*NO_NUMBER, None, INF, -INF, -1, 1e308, 1e7, 10**400, np.float64(-1))
NO_COUNT = (*NO_NUMBER, 1.5, 3.0, 0, -1, INF, 10**400, np.float64(3))
NO_NAMES = (5, True, THING, [5], {"a": 1}, b"means", [None])
NO_SWITCH = ("yes", 1, 0.0, [], THING)
NO_LIMITS = (5, "drop", [("drop", 1)], {5: 1}, {None: 1}, THING, True)

PYTHON = [
    *over(("data",), NO_TEXT, said="must be a text"),
    *over(("method", "recover", "channels"), NO_TEXT, said="{option}="),
    *over(("gradients",), NO_TEXT, recover="finetune", said="gradients="),
    *over(("agent", "weights"), NO_PATH, method=None, model="digits-mlp", said="{option}="),
    *over(("plan", "front"), (5, 1.5, True, {}, THING, b"runs", "a\0b"), method=None, said="{option}="),
    *over(("device",), NO_PATH, said="device="),
    *over(("out",), (None, "", *NO_PATH), said="out"),
    *over(("max_storage", "max_latency", "max_energy"), NO_SHARE),
    *over(("max_accuracy_drop",), (*NO_NUMBER, INF, -INF, -1, 101, 1e308)),
    *over(("accuracy_weight", "storage_weight", "latency_weight", "energy_weight"), NO_WEIGHT, said="weight"),
    *over(("evaluations",), NO_COUNT),
    *over(("seed",), (*NO_NUMBER, 1.5, -1, 2**32, 10**400, INF, None)),
    *over(("epochs",), NO_COUNT, recover="finetune"),
    *over(("memory",), (*NO_NUMBER, 0, -1, INF, 1e9, 10**400)),
    *over(("repair", "gradients_of"), NO_NAMES, recover="finetune", gradients="dynamic_fixed_point(width=8)"),
    *over(("ignored",), (5, True, THING, [5], {"a": 1}, b"means", [None])),
    *over(("incremental",), NO_SWITCH, recover="finetune"),
    *over(("limits",), NO_LIMITS),
    *over(("mean", "std"), ("a", THING, [None], "1,,2"), said="must be a number"),
    *over(("size",), ("a", 1.5, [1, 2, 3], THING, "0x5", -1, True, "1e9", (), [2.0])),
    *over(("crop",), ("a", NAN, 0, 2, -1, True, [], THING)),
    *(
        (f"limits {name}={value!r}", compressing(limits={name: value}), name)
        for name in ("storage", "latency", "energy")
        for value in ("a", NAN, 0, 2, True, [], np.float32(2))
    ),
    *(
        (f"limits drop={value!r}", compressing(limits={"drop": value}), "limits['drop']")
        for value in ("a", NAN, INF, -1, True, [], np.float32("inf"))
    ),
    ("limits twice", compressing(limits={"storage": 0.5}, max_storage=0.5), "and the same in limits"),
    ("an unknown limit", compressing(limits={"speed": 0.5}), "unknown limit 'speed'"),
    ("an unknown option", compressing(max_strage=0.5), "max_storage"),
    *(
        (f"model={model!r:.30}", compressing(model=model), said)
        for model, said in (
            (None, "which network?"),
            (5, "model is a int"),
            ([], "model is a list"),
            (nn.Linear, "model is a type"),
            (":", "lacks a name"),
            ("", "lacks a name"),
            ("net.py:", "lacks a name"),
            (":make", "lacks a name"),
            (".py:make", "lacks a name"),
            ("zoo:", "lacks a name"),
            (" : ", "lacks a name"),
            ("no_such.py:make", "does not exist"),
            ("zoo:resnet21", "unknown network"),
            ("os:nothing", "has no function"),
        )
    ),
    *((f"task={task!r:.30}", compressing(data=None, task=task), "task") for task in (5, True, [], THING, ":", "a:")),
    *(
        (
            f"calibration={given!r:.30}",
            lambda given=given: plywise.compress(NETWORK, given, "out", method="knapsack"),
            said,
        )
        for given, said in (
            (5, "calibration is a int"),
            (torch.zeros(4, 64), "calibration is a Tensor"),
            ({}, "calibration is a dict"),
            (iter(BATCHES), "read once only"),
            (b"x", "is a bytes"),
        )
    ),
    *(
        (
            f"{name}={value!r:.20}",
            lambda name=name, value=value: plywise.compress(
                NETWORK, BATCHES, "out", method="knapsack", **{name: value}
            ),
            name,
        )
        for name in ("metric", "distance", "loss", "forward_step", "validation", "test")
        for value in (5, "a", True)
    ),
    *(
        (
            f"unit={unit!r}",
            lambda unit=unit: plywise.compress(NETWORK, BATCHES, "out", method="knapsack", unit=unit),
            "unit",
        )
        for unit in (5, None, "", [])
    ),
    *(
        (
            f"pareto max_drop={value!r}",
            lambda value=value: plywise.pareto(NETWORK, data="digits", out="out", max_drop=value),
            "max_drop",
        )
        for value in (*NO_NUMBER, 0, -1, 101, INF)
    ),
    *(
        (f"pick={value!r}", compressing(method=None, front="nothing", pick=value), "pick=")
        for value in ("a", 1.5, True, [], NAN)
    ),
    *((f"load {path!r:.30}", lambda path=path: plywise.load(path), "path=") for path in (None, *NO_PATH)),
    *(
        (f"load model={model!r:.30}", lambda model=model: plywise.load("nothing", model), said)
        for model, said in ((5, "model is a int"), (True, "model is a bool"), ([], "model is a list"), (":", "lacks"))
    ),
    ("load what is not there", lambda: plywise.load("nothing"), "nothing"),
    *(
        (f"Demand {name}={value!r:.20}", lambda name=name, value=value: Demand(**{name: value}), name)
        for name in ("max_storage", "max_energy")
        for value in (True, NAN, "a", 1e308, Decimal("0.5"))
    ),
    *(
        (f"Task point={value!r}", lambda value=value: Task(BATCHES, point=value), "point=")
        for value in ("a", 0, -1, NAN, INF, True, [])
    ),
    *(
        (f"Task bounds={value!r}", lambda value=value: Task(BATCHES, bounds=value), "bounds=")
        for value in (5, "ab", (1,), (1, 2, 3), ("a", "b"), (2, 1), (1, 1), (NAN, 1), (0, INF), (True, 2))
    ),
    *((f"Task name={value!r}", lambda value=value: Task(BATCHES, name=value), "name=") for value in (5, None, [])),
    *(
        (f"PPOSettings {name}={value!r:.20}", lambda name=name, value=value: PPOSettings(**{name: value}), name)
        for name, values in {
            "learning_rate": (1e9, 1.0, 0.0, -1, NAN, "a", True),
            "num_envs": (0, -1, 10**8, 1.5, "a", True),
            "total_steps": (0, 10**13, NAN, 2.5),
            "gamma": (-1, 2, NAN),
            "seed": (-1, 2**32, 0.5),
            "clip": (0, NAN),
            "n_steps": (0, 1.5),
            "hidden": (0, 10**6),
            "minibatch": (0, 1, 7),
        }.items()
        for value in values
    ),
    ("a rollout that fits no memory", lambda: check_rollouts(PPOSettings(num_envs=10**6, minibatch=640)), "GiB"),
    (
        "no network to train on",
        lambda: train_agent(["digits-mlp"], ["digits-mlp"], out=Path("t")),
        "no network is left",
    ),
]

RECIPES = (
    5,
    None,
    True,
    [],
    {},
    b"identity",
    THING,
    "",
    "low_rank(",
    "low_rank(0.5)",
    "low_rank(ratio=)",
    "x" * 3000,
    "__import__('os')",
    "low_rank(ratio=__import__)",
    "low_rank(ratio=NaN)",
    "low_rank(**{})",
    "low_rank(ratio=2)",
    "lambda: 0",
    "low_rank + low_rank",
    "nothing_like_it",
    "low_rank(rate=0.5)",
    "low_rank(ratio=0.5, ratio=0.6)",
    "a" + ".a" * 900,
    "(" * 200 + ")" * 200,
    "low_rank\0",
)

SCHEMES = [
    *((f"recipe {text!r:.30}", lambda text=text: Scheme.of({"*": text}), "") for text in RECIPES),
    *(
        (f"scheme {given!r:.30}", lambda given=given: Scheme.of(given), "must be a dictionary")
        for given in (None, 5, "low_rank", [("*", "low_rank")], THING)
    ),
    *(
        (f"pattern {name!r}", lambda name=name: Scheme.of({name: "identity"}), "texts")
        for name in (5, None, ("a",), b"a")
    ),
    ("two of a stage", lambda: Recipe.parse("low_rank + filter_pruning"), "both of stage"),
]

COMPRESS = ("compress", "--model", "digits-mlp", "--data", "digits", "--out", "out", "--method", "knapsack")
TRAIN = ("train", "--out", "out")


def option(command, name, *values, said=None):
    """Yields a row for every value of an option."""
    for value in values:
        yield f"{command[0]} --{name} {value:.30}", (*command, f"--{name}={value}"), said or name


COMMANDS = [
    *option(COMPRESS, "max-storage", "true", "[1]", "{a: 1}", "", "a", "0", "2", "-1", ".nan", ".inf", "1e999", "0,15"),
    *option(COMPRESS, "max-latency", "true", "0", "1e308", ".nan", "ten"),
    *option(COMPRESS, "max-energy", "false", "-0.5", "[]"),
    *option(COMPRESS, "max-accuracy-drop", "true", "-1", "101", ".inf", "x"),
    *option(COMPRESS, "storage-weight", "1e308", ".inf", ".nan", "-1", "true", "null", "a", said="weight"),
    *option(COMPRESS, "evaluations", "0", "-1", "1.5", "x", "true", "1e999", "99999999999", "null"),
    *option(COMPRESS, "seed", "-1", "4294967296", "1.5", "a", "true", "null", "1e999"),
    *option(COMPRESS, "memory", "0", "-1", ".nan", ".inf", "a", "true", "1e9"),
    *option(COMPRESS, "epochs", "0", "-1", "x", "1e9"),
    *option(COMPRESS, "recover", "yes", "5", "[]"),
    *option(COMPRESS, "device", "toaster", "here:0", "here:x", "here:1x0", "nothing.json", "cuda:y"),
    *option(COMPRESS, "repair", "everything", "means,nothing", said="repair"),
    *option(COMPRESS, "crop", "0", "2", "a", ".nan"),
    *option(COMPRESS, "size", "a", "0", "1x2x3", "99999"),
    *option(COMPRESS, "mean", "a", "300", ".nan"),
    *option(COMPRESS, "channels", "cmyk", "5", said="channels"),
    *option(COMPRESS, "plan", "nothing.yaml", ".", said="plan"),
    *option(COMPRESS, "agent", "nothing", said="agent"),
    *option(COMPRESS, "pick", "a", "1.5"),
    *option(COMPRESS, "knee", "maybe", "2"),
    *option(COMPRESS, "max-strage", "1", said="unknown option"),
    *option(COMPRESS, "", "1", said=""),
    *(
        (f"model {model!r}", ("compress", f"--model={model}", *COMPRESS[3:]), said)
        for model, said in (
            (":", "lacks a name"),
            ("", "lacks a name"),
            ("a:", "lacks a name"),
            (":b", "lacks a name"),
            ("digit-mlp", "Did you mean"),
            ("net.py", "write 'net.py:FUNCTION'"),
            ("missing.py:make", "does not exist"),
        )
    ),
    *(
        (f"data {data!r}", (*COMPRESS[:3], f"--data={data}", *COMPRESS[5:]), said)
        for data, said in (
            ("digit", "Did you mean"),
            ("mnist", "a path is missing"),
            ("mnist:nothing", "does not exist"),
            ("digits:here", "take no path"),
            (":", "unknown dataset"),
            ("folder:", "a path is missing"),
        )
    ),
    *((f"method {method!r}", (*COMPRESS[:-1], method), "unknown method") for method in ("knapsak", "5", "true", "")),
    *option(TRAIN, "learning-rate", "1e9", "0", "-1", ".nan", ".inf", "fast", said="learning"),
    *option(TRAIN, "envs", "0", "-1", "100000000", "1.5", "x", "500000"),
    *option(TRAIN, "steps", "0", "-5", "true", "1e999", "9999999999999"),
    *option(TRAIN, "networks", "digit-mlp", "digits-mlp,,nothing", said="unknown network"),
    *option(TRAIN, "hold-out", "nothing", said="nothing"),
    *option(TRAIN, "devices", "toaster", said="toaster"),
    ("no command", ("compres",), "unknown command"),
    ("a file", ("nothing.yaml",), "unknown command"),
    ("compress alone", ("compress",), "missing: --out"),
    ("evaluate alone", ("evaluate",), "missing: --folder"),
    ("evaluate nothing", ("evaluate", "--folder", "nothing"), "nothing"),
    ("profile nothing", ("profile", "--model", ":", "--data", "digits"), "lacks a name"),
    ("compare one", ("compare", "nothing"), ""),
    ("compare nothing", ("compare", "nothing", "nothing"), "nothing"),
    ("init no Python", ("init", "--out", "task.txt"), "is no Python file"),
    ("list what", ("list", "network"), "Did you mean"),
    ("list number", ("list", "5"), "unknown list"),
]


def agent_with(**changes):
    """Writes an agent whose description was changed, and reads it."""

    def call():
        RecipeAgent.untrained(3, 4, seed=0).save(Path("agent"))
        path = Path("agent/agent.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return RecipeAgent.load(Path("agent"), ("a", "b", "c"), ("d", "e", "f", "g"))

    return call


def reading(name, content, read):
    """Writes a file and reads it."""

    def call():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read(path)

    return call


def zipped(size, content=b""):
    """Returns an archive of one image of each split whose headers announce `size` bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for split in ("train", "test"):
            archive.writestr(f"{split}/cat/0.png", content)
    raw = bytearray(buffer.getvalue())
    start = raw.find(b"PK\x01\x02")
    while start >= 0:  # the central directory, which is what is believed
        raw[start + 24 : start + 28] = struct.pack("<I", size)
        start = raw.find(b"PK\x01\x02", start + 4)
    return bytes(raw)


def idx(shape, values=b"\0"):
    """Returns a gzipped IDX file that announces a shape."""
    head = bytes((0, 0, 8, len(shape))) + b"".join(each.to_bytes(4, "big") for each in shape)
    return gzip.compress(head + values)


def mnist(content):
    """Writes a folder of MNIST whose training images are something else, and reads it."""

    def call():
        folder = Path("mnist")
        folder.mkdir(exist_ok=True)
        for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
            (folder / name).write_bytes(content)
        (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(content)
        return load_dataset("mnist:mnist")

    return call


def bomb():
    """Returns a torch file, a zip archive, of which little is left when it is packed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(32 << 20))
    return buffer.getvalue()


def folder_of(read):
    return lambda path: read(path.parent)


NOTHING_JSON = ("", "nothing", "null", "[]", "5", '"text"', "{", '{"a": ', "[" * 5000, "\0", '{"format": 5}', "NaN")
"""Files that are no description of anything."""

FILES = [
    *(
        (f"{name} {value!r:.30}", agent_with(**{name: value}), name)
        for name, values in {
            "context_features": (None, 5, "a", [None, 1, 2], [[], "b", "c"], ["a", {}, "c"], {}),
            "recipe_features": (None, 5, [1, 2, 3, 4], [["d"], "e", "f", "g"], [None]),
            "training": (None, 5, []),
            "trained_steps": (None, -1, "5", True, 1.5),
            "weights_sha256": (None, 5),
            "context_size": (None, 0, -1, 10**9, True, "3", 2.5),
            "hidden": (None, 0, 10**9),
        }.items()
        for value in values
    ),
    ("another version", agent_with(version=2), "version 2"),
    ("no agent", agent_with(format="x"), "'format' must be"),
    *(
        (f"agent.json {content!r:.20}", reading("agent/agent.json", content, folder_of(RecipeAgent.load)), "agent.json")
        for content in NOTHING_JSON
    ),
    *(
        (f"device {content!r:.20}", reading("device.json", content, DeviceFile), "device.json")
        for content in NOTHING_JSON
    ),
    *(
        (f"report {content!r:.20}", reading("run/report.json", content, folder_of(read_report)), "report.json")
        for content in NOTHING_JSON
        if content != '{"format": 5}'
    ),
    *(
        (f"front {content!r:.20}", reading("front/front.json", content, folder_of(FrontFolder.load)), "front")
        for content in NOTHING_JSON
    ),
    *(
        (f"plan {content!r:.20}", reading("plan.yaml", content, Scheme.load), "plan")
        for content in (
            *(each for each in NOTHING_JSON if len(each) < 100),
            "[" * 300,
            "a: [",
            "a: &b [*b]",
            "!!python/object:os.system {}",
            "plywise: plan/1",
            "plywise: plan/1\nlayers: 5",
            "plywise: plan/1\nlayers: {a: 5}",
            "plywise: plan/1\nlayers: {a: b}",
            "plywise: plan/1\npatterns: [a]",
            "plywise: plan/1\nlayers: {a: x, a: y}",
            b"\xff\xfe\x00",
        )
    ),
    *(
        (f"prices {content!r:.20}", reading("prices", content, load_prices), "delete it to price again")
        for content in (b"", b"\0" * 64, b"\xff" * 64, struct.pack("<Q", 1 << 62), b"{}" * 40)
    ),
    *(
        (f"weights {name} {content!r:.20}", reading(name, content, read_state_dict), "the file of weights")
        for name in ("w.safetensors", "w.pt")
        for content in (b"", b"\0" * 64, b"PK\x03\x04", struct.pack("<Q", 1 << 62))
    ),
    ("weights that unpack to much more", reading("w.pt", bomb(), read_state_dict), "would unpack to"),
    *(
        (f"images {said}", reading("a.zip", content, lambda path: load_dataset(f"folder:{path}")), said)
        for content, said in (
            (b"", "no readable zip archive"),
            (b"PK" * 9, "no readable zip archive"),
            (zipped(MOST_BYTES + 1), "more than the"),
            (zipped(0xFFFFFFFE), "more than the"),
            (zipped(4, b"text"), "it is no image file"),
            (zipped(9, b"\x89PNG\r\n\x1a\n"), "0.png"),
        )
    ),
    *(
        (f"mnist {said}", mnist(content), said)
        for content, said in (
            (b"", "no IDX file"),
            (b"no gzip", "cannot be read"),
            (idx((2, 28)), "no IDX file"),
            (idx((10**9, 28, 28)), "holds others"),
            (idx((0, 28, 28)), "announces 0"),
            (idx((1, 1, 1), bytes(99)), "holds more"),
            (idx((2, 2, 2)), "holds 1"),
        )
    ),
    *(
        (f"networks {text!r:.30}", reading("net.py", text, lambda path: load_model(f"{path}:make")), said)
        for text, said in (
            ("", "has no function"),
            ("make = 5", "has no function"),
            ("def make(", "cannot be imported"),
            ("raise SystemExit(3)", "cannot be imported"),
            ("def make(): return 5", "returned a int"),
            ("def make(): raise ValueError('boom')", "boom"),
            ("def make(n): return n", "failed: TypeError"),
            ("def make(): exit(7)", "failed: SystemExit"),
        )
    ),
    *(
        (f"tasks {text!r:.30}", reading("task.py", text, lambda path: load_task(f"{path}:make")), said)
        for text, said in (
            ("def make(): return 5", "must return a plywise.Task"),
            ("make = 5", "has no function"),
            ("import nothing_like_it", "cannot be imported"),
            ("def make(): return None", "NoneType"),
        )
    ),
]


class Of(nn.Module):
    """One layer, and a forward that is given."""

    def __init__(self, forward, dtype=torch.float32):
        super().__init__()
        self.layer, self._forward = nn.Linear(64, 4, dtype=dtype), forward

    def forward(self, x):
        return self._forward(self.layer, x)


def binding(batches, forward=lambda layer, x: layer(x), **given):
    return lambda: bind(Task(batches, **given), Of(forward).eval())


def meta():
    with torch.device("meta"):
        return nn.Linear(64, 4)


RANDOM = [torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) for _ in range(4)]
DATA = [
    ("no batches", binding([]), ""),
    ("an empty batch", binding([torch.zeros(0, 64)]), ""),
    ("batches of nothing", binding([None]), ""),
    ("batches of numbers", binding([5, 6]), ""),
    ("another width", binding([torch.zeros(4, 63)]), "does not run on a batch"),
    ("another type", binding([torch.zeros(4, 64, dtype=torch.int64)]), "does not run on a batch"),
    ("NaN", binding([torch.full((4, 64), NAN)] * 4), "no numbers"),
    ("a forward that returns nothing", binding(RANDOM, lambda layer, x: None), "puts out"),
    ("a forward that returns labels", binding(RANDOM, lambda layer, x: layer(x).argmax(1)), "no tensor of floats"),
    ("a forward that raises", binding(RANDOM, lambda layer, x: 1 / 0), "ZeroDivisionError"),
    ("a forward that draws", binding(RANDOM, lambda layer, x: layer(x) + torch.rand(4)), "on the same inputs again"),
    ("a forward that writes", binding(RANDOM, lambda layer, x: layer(x.add_(1))), "writes over its input"),
    (
        "a forward that learns",
        binding(RANDOM, lambda layer, x: layer.bias.data.add_(1) + layer(x)),
        "changes layer.bias",
    ),
    ("a metric that raises", binding(RANDOM, metric=lambda model, batches: 1 / 0), "metric"),
    ("a metric of nothing", binding(RANDOM, metric=lambda model, batches: None), "metric"),
    ("a metric of text", binding(RANDOM, metric=lambda model, batches: "good"), "metric"),
    ("a metric that is NaN", binding(RANDOM, metric=lambda model, batches: NAN), "metric"),
    ("a metric that is 0", binding(RANDOM, metric=lambda model, batches: 0.0, unit="mIoU"), "reaches 0 mIoU"),
    ("a loss that raises", binding(RANDOM, loss=lambda outputs, batch: 1 / 0), "the loss raises"),
    ("a loss of many", binding(RANDOM, loss=lambda outputs, batch: outputs), "the loss returns"),
    ("a loss that is NaN", binding(RANDOM, loss=lambda outputs, batch: torch.tensor(NAN)), "the loss returns"),
    ("a distance that raises", binding(RANDOM, distance=lambda a, b: 1 / 0), "distance"),
    ("a distance below 0", binding(RANDOM, distance=lambda a, b: -torch.ones(len(a))), "distance"),
    ("a distance of another length", binding(RANDOM, distance=lambda a, b: torch.ones(3)), "distance"),
    ("complex weights", lambda: Network.of(nn.Linear(64, 4, dtype=torch.complex64), RANDOM[0]), "complex"),
    ("weights without numbers", lambda: Network.of(meta(), RANDOM[0]), "meta device"),
    ("weights without a shape", lambda: Network.of(nn.LazyLinear(4), RANDOM[0]), "no shape yet"),
]

ROWS = [*PYTHON, *SCHEMES, *FILES, *DATA]


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PLYWISE_CACHE", str(folder / "cache"))
        yield


@pytest.mark.parametrize(("call", "said"), [row[1:] for row in ROWS], ids=map(named, ROWS))
def test_python_refuses(call, said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(PlywiseError) as caught:
            call()
    message = str(caught.value)
    assert said in message
    assert " at 0x" not in message.replace(repr(THING), "")
    assert not os.path.exists("out")


@pytest.mark.parametrize(("words", "said"), [row[1:] for row in COMMANDS], ids=map(named, COMMANDS))
def test_commands_refuse(words, said, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.err.startswith("plywise: ")
    assert said.replace("-", "_") in printed.err.replace("-", "_")  # as the parser writes options, and as Python does
    assert len(printed.err.splitlines()) == 1
    assert not os.path.exists("out")


def test_the_table_is_long_enough():
    assert len({name for name, *_ in ROWS}) + len({name for name, *_ in COMMANDS}) >= 500


def test_numbers_of_numpy_and_torch_are_taken_as_plain_ones():
    odd = {"max_latency": np.float32(0.5), "storage_weight": torch.tensor(0.25), "evaluations": np.int64(3)}
    odd |= {"seed": np.array(7), "limits": {"storage": np.float64(0.5), "drop": np.float32(0.5)}}
    found = make_compression({"model": NETWORK, "data": "digits", "method": "knapsack", **odd})
    values = [*dataclasses.asdict(found.demand).values(), found.drop, found.search.evaluations, found.search.seed]
    assert {type(value) for value in values} == {float, int, type(None)}
    assert (found.demand.max_latency, found.demand.max_storage, found.drop, found.search.seed) == (0.5, 0.5, 0.5, 7)


def test_whatever_is_in_a_report_it_is_written_as_json():
    content = {"a": np.float32(0.5), "b": NAN, 3: (np.int64(2), -INF), "c": np.arange(2), "d": Path("x"), "e": None}
    write_json(content, Path("report.json"))
    read = json.loads(Path("report.json").read_text(), parse_constant=pytest.fail)
    assert read == {"a": 0.5, "b": None, "3": [2, None], "c": [0, 1], "d": "x", "e": None}
