"""A hash of the code that compresses, for whoever keeps what it has found."""

import hashlib
from pathlib import Path

import plywise.compressors
import plywise.env


def source_digest(*others: Path) -> str:
    """Returns what changes with any file of `plywise.compressors`, of `plywise.env`, or of `others`."""
    digest = hashlib.sha256()
    for package in (plywise.compressors, plywise.env):
        for source in sorted(Path(package.__path__[0]).rglob("*.py")):
            digest.update(source.read_bytes())
    for source in others:
        digest.update(source.read_bytes())
    return digest.hexdigest()
