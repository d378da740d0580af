"""Price tables as files: arrays in safetensors, names in its header. Loading executes no code."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import FileFormatError
from plywise.env.prices.prices import PriceTable

FORMAT = "prices/5"
PLAIN = ("network", "layers", "recipes", "accuracy", "chance", "samples", "refused")
"""Fields that are no arrays."""


def save_prices(table: PriceTable, path: Path) -> None:
    """Writes a price table, atomically."""
    fields = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    arrays = {name: np.ascontiguousarray(value) for name, value in fields.items() if name not in PLAIN}
    header = {"plywise": FORMAT, "plain": json.dumps({name: fields[name] for name in PLAIN})}
    write_atomically(path, save(arrays, header))


def load_prices(path: Path) -> PriceTable:
    """Reads a price table.

    Raises:
        FileFormatError: if the file is not one.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        plain = json.loads(header.get("plain", "null"))
        if header.get("plywise") != FORMAT or not isinstance(plain, dict):
            raise FileFormatError(f"{path} is not a price table of this version ({FORMAT}); delete it to price again")
        return PriceTable(
            **arrays,
            network=plain["network"],
            layers=tuple(plain["layers"]),
            recipes=tuple(map(tuple, plain["recipes"])),
            accuracy=float(plain["accuracy"]),
            chance=float(plain["chance"]),
            samples=int(plain["samples"]),
            refused=tuple((str(layer), str(recipe), str(reason)) for layer, recipe, reason in plain["refused"]),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path} cannot be read as a price table ({error}); delete it to price again") from error
