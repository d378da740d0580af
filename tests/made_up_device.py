"""A device that nothing has to be timed on, and images with the classes that a network gives."""

import numpy as np
import torch
from tiny_networks import images

from plywise.env.costs.device import Device
from plywise.env.task.samples import labelled


class FakeLatency:
    """A device whose latency is macs, a third of them where it counts in integers, and a start for each operation."""

    device = Device("made up", "made up")

    def milliseconds(self, chains, progress=True):
        return np.array([sum(0.001 + op.macs * (1e-8 if op.integer else 3e-8) for op in chain) for chain in chains])


def samples(model, count, seed):
    inputs = images(count, seed)
    with torch.no_grad():
        return labelled(inputs, model(inputs).argmax(1))
