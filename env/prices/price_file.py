"""Price tables as files: arrays in safetensors, names in its header. Loading executes no code."""

import dataclasses
from pathlib import Path

from plywise.compressors.errors import FileFormatError
from plywise.compressors.tensor_file import TensorFile
from plywise.env.prices.prices import PriceTable

FILE = TensorFile("prices/6", "delete it to price again")
PLAIN = ("network", "layers", "recipes", "accuracy", "chance", "samples", "refused")
"""Fields that are no arrays."""


def save_prices(table: PriceTable, path: Path) -> None:
    """Writes a price table, atomically."""
    fields = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    plain = {name: fields.pop(name) for name in PLAIN}
    FILE.write(path, fields, plain)


def load_prices(path: Path) -> PriceTable:
    """Reads a price table.

    Raises:
        FileFormatError: if the file is not one.
    """
    arrays, plain = FILE.read(path)
    try:
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
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path} is not a price table ({error}); {FILE.remedy}") from error
