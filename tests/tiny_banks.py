"""Banks of the tiny networks, plans for them, and what networks put out."""

import torch
from tiny_networks import build, images, labels

from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank.bank import Bank
from plywise.env.calibration.calibration import calibrate
from plywise.env.network.network import Network
from plywise.env.task.samples import labelled


def banked(kind):
    network = Network.of(build(kind), images(4), kind.__name__)
    return Bank(network, calibrate(network, labelled(images(), labels())))


def plan_of(network, recipe="identity", **recipes):
    texts = {layer.name: recipes.get(layer.name, recipe) for layer in network.layers}
    return Plan(network.name, {name: Recipe.parse(text) for name, text in texts.items()})


def outputs_of(model, inputs):
    with torch.no_grad():
        return model(inputs)
