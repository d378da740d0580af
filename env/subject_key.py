"""What the figures of a network under study are kept under: all that decides them, and the code that finds them."""

import hashlib

from plywise.compressors.recipes.entry_points import load_entry_points
from plywise.compressors.recipes.technique import Technique
from plywise.env.bank.repair import Repair
from plywise.env.network.menu import catalogue
from plywise.env.network.network import Network
from plywise.env.storage.code_digest import code_digest
from plywise.env.task.samples import Samples, model_digest

CODE = ("plywise.env.subject", "plywise.compressors")
"""What decides the figures of a subject; techniques are found by the folder that they are in, not by imports."""

DIGESTED = 16
"""Calibration inputs on which networks of the same modules and weights are told apart by what they put out."""


def key_of(network: Network, calibration: Samples, validation: Samples, seed: int, repair: Repair) -> str:
    """Returns the key of a network with its samples; arguments as for `Subject`."""
    outside = (technique.__module__ for technique in load_entry_points(Technique))
    return digest_of(
        code_digest(*CODE, *outside),
        model_digest(network.original, calibration.joined(DIGESTED), calibration.judge),
        *(layer.name for layer in network.layers),
        calibration.digest(),
        validation.digest(),
        digest_of(*map(str, catalogue())),
        str(seed),
        repr(repair),
    )


def digest_of(*parts: str) -> str:
    """Returns a short name for texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
