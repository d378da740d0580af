"""Compressed networks back from their files."""

from pathlib import Path

from torch import nn

from plywise.compressors.errors import ConfigurationError
from plywise.compressors.packing.packed_file import load_packed, read_metadata
from plywise.env.network.preparation import prepare
from plywise.experiments.networks.model_loading import check_network, load_model
from plywise.experiments.networks.zoo import ZOO, untrained

WEIGHTS = "weights.safetensors"


def load_compressed(path: Path, model: nn.Module | str | None = None) -> nn.Module:
    """Returns a compressed network in eval mode.

    Args:
        path: a hand-over folder or the packed file in it.
        model: the original architecture as it was given to be compressed, or what `load_model` finds it by; None for
            networks of the zoo.

    Raises:
        FileFormatError: if the file is missing or damaged.
        ConfigurationError: if the network is not of the zoo and no architecture is given.
    """
    if model is not None:
        check_network(model)
    file = path / WEIGHTS if path.is_dir() else path
    if model is None:
        given = read_metadata(file).get("model", "")
        name = given.removeprefix("zoo:")
        if name not in ZOO:
            raise ConfigurationError(
                f"{file} is of the network {given!r}, which is not in the zoo: give the original network as well "
                "(plywise.load(path, model), or --model on the command line)"
            )
        model = untrained(name)
    original = architecture(model) if isinstance(model, str) else model
    return load_packed(file, prepare(original, numbers=False).model)


def architecture(model: str) -> nn.Module:
    """Returns a network whose weights do not matter: of the zoo, or from a user's factory, which is run."""
    kind, colon, name = model.rpartition(":")
    return untrained(name) if not colon or kind == "zoo" else load_model(model)
