"""Brings images to the size and the channels that a network reads: what torchvision's `Resize` and `CenterCrop` do."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from plywise.experiments.data.preprocessing import BGR, CHANNELS, GRAY, RGB, Preprocessing, Size
from plywise.experiments.data.splits import LabelledImages


def resized(image: Image.Image, to: Preprocessing) -> Tensor:
    """Returns an image as the network reads it, before scaling and normalisation.

    Bilinear over all source pixels (Pillow's antialiased filter), proportions kept, the middle cut out.

    Args:
        image: of 8 bits a channel.
        to: with size, crop and channels.

    Returns:
        `(c, h, w)` uint8.
    """
    assert to.size is not None
    image = image.convert("L" if to.channels == GRAY else "RGB")
    rows, columns = _covering_size((image.height, image.width), to.covering)
    if (columns, rows) != image.size:
        image = image.resize((columns, rows), Image.Resampling.BILINEAR)
    height, width = to.size
    top, left = round((rows - height) / 2), round((columns - width) / 2)
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + width, top + height))))
    if to.channels == GRAY:
        return pixels.unsqueeze(0)
    pixels = pixels.permute(2, 0, 1)
    return pixels.flip(0) if to.channels == BGR else pixels


def resized_parts(
    parts: tuple[LabelledImages, LabelledImages], asked: Preprocessing
) -> tuple[tuple[LabelledImages, LabelledImages], Preprocessing]:
    """Returns training and test images of one size as the network reads them, and what was done to them.

    Args:
        parts: of one or three channels.
        asked: what is left open is filled in, as for `Preprocessing.for_images`.
    """
    count, height, width = parts[0].images.shape[1:]
    natural = {number: name for name, number in CHANNELS.items() if name != BGR}[count]
    to = asked.for_images({(height, width): len(parts[0].labels)}, colour=count == CHANNELS[RGB])
    if (to.size, to.crop, to.channels) == ((height, width), 1.0, natural):
        return parts, to
    train, test = (LabelledImages(_resized_all(part.images, to), part.labels) for part in parts)
    return (train, test), to


def _resized_all(images: Tensor, to: Preprocessing) -> Tensor:
    pictures = images[:, 0] if images.shape[1] == 1 else images.permute(0, 2, 3, 1)
    return torch.stack([resized(Image.fromarray(each.numpy()), to) for each in pictures.contiguous()])


def _covering_size(size: Size, box: Size) -> Size:
    """Returns the smallest height and width with the proportions of `size` that cover `box`."""
    (height, width), (rows, columns) = size, box
    if rows * width >= columns * height:
        return rows, max(columns, rows * width // height)
    return max(rows, columns * height // width), columns
