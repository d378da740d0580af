"""A device that nothing has to be timed on, and images with the answers that a network gives."""

import numpy as np
import torch
from tiny_networks import images

from plywise.env.device import Device
from plywise.env.samples import Samples


class FakeLatency:
    """A device whose latency is macs and a start for each operation."""

    device = Device("made up", "made up")

    def milliseconds(self, chains, progress=True):
        return np.array([sum(0.001 + operation.macs * 3e-8 for operation in chain) for chain in chains])


def samples(model, count, seed):
    inputs = images(count, seed)
    with torch.no_grad():
        return Samples(inputs, model(inputs).argmax(1))
