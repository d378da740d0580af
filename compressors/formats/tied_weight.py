"""Layers that share one compressed weight."""

import copy

from torch import nn

from plywise.compressors.formats.weight_format import attach_format, weight_format


def tied(follower: nn.Module, leader: nn.Module) -> nn.Module:
    """Returns a layer like `follower` whose weight is that of `leader`: the same tensor, in the same format."""
    new = copy.copy(follower)
    new._parameters = {**follower._parameters, "weight": leader._parameters["weight"]}
    fmt = weight_format(leader)
    if fmt is not None:
        attach_format(new, fmt)
    return new
