"""How often a network is right."""

import torch
from torch import nn

from plywise.experiments.dataset import Split


def accuracy(model: nn.Module, split: Split, batch_size: int = 500) -> float:
    """Returns the share of images that a network in eval mode classifies right, percent.

    Args:
        model: maps `(n, c, h, w)` float32 to logits `(n, classes)`; its mode is as before afterwards.
        split: labelled images.
        batch_size: images of a forward pass.
    """
    was_training = model.training
    model.eval()
    right = 0
    with torch.inference_mode():
        for inputs, labels in split.batches(batch_size):
            right += int((model(inputs).argmax(1) == labels).sum())
    model.train(was_training)
    return 100.0 * right / len(split)
