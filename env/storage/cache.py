"""Where files that can be made again are kept between runs."""

import os
import warnings
from pathlib import Path

from plywise.compressors.errors import ConfigurationError


class CacheDamageWarning(UserWarning):
    """Says that something in the cache was damaged and is made again."""


def tell_damaged(what: str) -> None:
    """Says that something in the cache is not as it was written, and is made again."""
    warnings.warn(f"damaged and made again: {what}", CacheDamageWarning, stacklevel=3)


def cache_folder(*parts: str) -> Path:
    """Returns a folder below the cache and creates it where it is missing.

    The cache is the folder in the environment variable `PLYWISE_CACHE`, else `~/.cache/plywise`.

    Args:
        parts: names of the folders below it.

    Raises:
        ConfigurationError: the folder cannot be created.
    """
    root = os.environ.get("PLYWISE_CACHE")
    folder = (Path(root) if root else Path.home() / ".cache" / "plywise").joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"cannot create the cache folder {folder} ({error.strerror}); set PLYWISE_CACHE to a writable folder"
        ) from error
    return folder
