"""A trained network from the zoo, or from a user's own factory and file of weights."""

import importlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from plywise.compressors.errors import ConfigurationError, ModelError
from plywise.env.network.preparation import prepare
from plywise.env.task.steadiness import apart, check_steady
from plywise.env.task.task import Task
from plywise.experiments.data.dataset import Dataset
from plywise.experiments.networks.user_file import import_file
from plywise.experiments.networks.zoo import trained, untrained, zoo_entry

NAMED_AT_MOST = 5

MOST_UNPACKED = 8
"""Times the bytes of a file of weights that it may unpack to; torch packs nothing."""

ALONE = 1e-3
"""Of the largest logit: how far those of an image alone may lie from those in a batch, summed in another order."""


def check_network(model: Any) -> None:
    """Raises ConfigurationError unless a network is given itself, or by a text that names a file and a function."""
    if isinstance(model, nn.Module):
        return
    if not isinstance(model, str):
        raise ConfigurationError(
            f"model is a {type(model).__name__} and must be an nn.Module, or a text: 'zoo:NAME', "
            "'package.module:function' or 'file.py:function', where the function returns the network; "
            "'__main__:function' is one of your own script"
        )
    check_spec(model, "model")


def check_spec(spec: str, option: str) -> None:
    """Raises ConfigurationError where a text lacks what stands before or behind its colon."""
    location, colon, name = spec.rpartition(":")
    if not name.strip() or (colon and not location.removesuffix(".py").strip()):
        raise ConfigurationError(
            f"{option}={spec!r} lacks a name: write 'file.py:function' or 'package.module:function'"
            + ("" if option == "task" else ", or 'zoo:NAME' (see 'plywise list networks')")
        )


def load_model(spec: str, weights: str | Path | None = None, dataset: Dataset | None = None) -> nn.Module:
    """Loads a trained network in eval mode.

    Args:
        spec: `NAME` or `zoo:NAME` of the zoo; `package.module:factory` or `path/to/file.py:factory`, where the
            factory takes no arguments and returns an `nn.Module`. A factory is the user's code and is run.
        weights: a state dict, `.safetensors` or a torch file of tensors only; no code in it is run. Without it, a
            network of the zoo is trained on the spot and a factory's network is taken as it is.
        dataset: what the network must run on; also what a digits network is trained on, else the digits. A network of
            the zoo that has a task of its own takes none.

    Raises:
        ConfigurationError: the zoo has no network of this name.
        ModelError: the network cannot be built or is of a kind that cannot be compressed, its weights do not fit or are
            not finite, or it does not run.
    """
    check_spec(spec, "model")
    kind, colon, name = spec.rpartition(":")
    in_zoo = not colon or kind == "zoo"
    model = _from_zoo(name, weights, dataset) if in_zoo else _from_factory(spec, kind, name)
    if weights is not None:
        load_weights(model, Path(weights).expanduser())
    studied = prepare(model).model
    check_finite(studied.state_dict(), spec)
    if dataset is not None:
        check_runs(studied, dataset)
    return model.eval()


def check_runs(model: nn.Module, dataset: Dataset) -> None:
    """Runs a network on two training images: twice together, then one by one.

    Raises:
        ModelError: as `check_fits`, or the logits of an image are not always the same.
    """
    logits = check_fits(model, dataset)
    check_steady(model, nn.Module.__call__, dataset.train.inputs(0, 2))
    with torch.inference_mode():
        try:
            alone = torch.cat([model(dataset.train.inputs(index, index + 1)).reshape(1, -1) for index in range(2)])
        except Exception:  # networks that want a batch can be compressed all the same
            return
    if alone.shape != logits.shape or apart(alone, logits) > ALONE:
        raise ModelError(
            "the network gives other logits for an image alone than for the same image in a batch of two; each must "
            "depend on its own image: do not mix images of a batch (no mean over axis 0, no BatchNorm with "
            "track_running_stats=False)"
        )


def check_fits(model: nn.Module, dataset: Dataset) -> Tensor:
    """Runs a network on two training images and returns its logits `(2, classes)`.

    Raises:
        ModelError: the forward pass fails, or its result is not finite logits `(2, classes)`.
    """
    given = f"images {dataset.input_shape} of the dataset {dataset.name!r}"
    try:
        with torch.inference_mode():
            logits = model(dataset.train.inputs(0, 2))
    except Exception as error:  # whatever a user's network may raise
        raise ModelError(f"the network fails on {given}: {error}; choose a network and a dataset that fit") from error
    if not isinstance(logits, Tensor) or logits.shape != (2, dataset.num_classes):
        got = tuple(logits.shape[1:]) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ModelError(
            f"the network gives {got} for each of the {given}; it must give one tensor of "
            f"{dataset.num_classes} logits, one for each class"
        )
    if not logits.isfinite().all():
        raise ModelError(f"the network gives NaN or infinite logits on {given}; its weights or its inputs are wrong")
    return logits


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a state dict into a network.

    Raises:
        ModelError: the file is missing, empty, damaged or holds more than tensors, or does not fit the network.
    """
    state = read_state_dict(path)
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    complaints = [f"{kind}: {_few(names)}" for kind, names in kinds.items() if names]
    if complaints:
        raise ModelError(f"{path} does not fit the network; {'; '.join(complaints)}")
    model.load_state_dict(state, strict=False)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads tensors by name and runs no code.

    Raises:
        ModelError: the file is missing, empty, damaged or holds more than tensors.
    """
    if not path.is_file():
        raise ModelError(f"the file of weights {path} does not exist; give a .safetensors or a torch file")
    if path.stat().st_size == 0:
        raise ModelError(f"the file of weights {path} is empty; save the weights again")
    _check_unpacked(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ModelError(f"the file of weights {path} is damaged or no safetensors file ({error})") from error
    except Exception as error:  # the unpickler may raise anything on bytes that are no pickle
        # Its own words stay out: they advise to run the code in the file.
        raise ModelError(
            f"the file of weights {path} is damaged or holds more than tensors; "
            "save model.state_dict() or use safetensors"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ModelError(f"{path} does not map names to tensors; save model.state_dict()")
    return dict(state)


def _check_unpacked(path: Path) -> None:
    """Raises ModelError where a torch file, a zip archive, unpacks to much more than it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # of another kind
    if unpacked > MOST_UNPACKED * max(path.stat().st_size, 1 << 20):
        raise ModelError(
            f"the file of weights {path} would unpack to {unpacked:,} bytes from {path.stat().st_size:,}, which "
            "torch's own files never do; save model.state_dict() again"
        )


def check_finite(state: Mapping[str, Tensor], origin: str) -> None:
    """Raises ModelError where a tensor holds NaN or infinite values, and names it."""
    bad = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if bad:
        raise ModelError(
            f"the weights of {origin} hold NaN or infinite values in {_few(bad)}; train or save them again"
        )


def _from_zoo(name: str, weights: str | Path | None, dataset: Dataset | None) -> nn.Module:
    entry = zoo_entry(name)
    if weights is not None:
        return untrained(name)
    if entry.training is None:
        raise ModelError(f"network {name!r} needs weights for {entry.dataset}; give their file with --weights")
    return trained(name, dataset)


def _from_factory(spec: str, location: str, name: str) -> nn.Module:
    model = _made(spec, location, name)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec}() returned a {type(model).__name__}; it must return a torch.nn.Module")
    lazy = [name for name, value in model.state_dict(keep_vars=True).items() if is_lazy(value)]
    if lazy:
        raise ModelError(f"{spec}() leaves the shape of {_few(lazy)} open; run it once on an input before returning it")
    return model


def load_task(spec: str) -> Task:
    """Returns the task that a user's function makes; its code is run.

    Args:
        spec: `path/to/file.py:make_task` or `package.module:make_task`.

    Raises:
        ModelError: where the file or the function is not there, fails or returns something else.
    """
    check_spec(spec, "task")
    location, colon, name = spec.rpartition(":")
    if not colon:
        raise ModelError(f"{spec!r} names no function; write 'path/to/file.py:make_task'")
    task = _made(spec, location, name)
    if not isinstance(task, Task):
        raise ModelError(f"{spec}() returned a {type(task).__name__}; it must return a plywise.Task")
    return task


def _made(spec: str, location: str, name: str) -> Any:
    """Returns what a user's function returns."""
    module = _import(location)
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ModelError(f"{location} has no function {name!r}; it has {_few(known) or 'no function at all'}")
    try:
        return factory()
    except (Exception, SystemExit) as error:  # whatever a user's factory may raise
        raise ModelError(f"{spec}() failed: {type(error).__name__}: {error}") from error


def _import(location: str) -> ModuleType:
    try:
        return import_file(Path(location)) if location.endswith(".py") else importlib.import_module(location)
    except ModelError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        raise ModelError(
            f"{location} cannot be imported: {type(error).__name__}: {error}; write 'NAME' of the zoo, "
            "'package.module:factory' or 'path/to/file.py:factory'"
        ) from error


def _few(names: list[Any]) -> str:
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return ", ".join(map(str, names[:NAMED_AT_MOST])) + more
