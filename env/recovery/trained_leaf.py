"""The weights of one leaf while they are trained: dense numbers alongside what the network runs on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from plywise.compressors.formats.weight_format import WeightFormat
from plywise.compressors.sparsity.dynamic_surgery import DynamicSurgery


@dataclass(frozen=True)
class Surgery:
    """How weights leave a leaf and come back.

    Attributes:
        technique: decides.
        loudness: what a magnitude is multiplied by to be a saliency, in the shape of the weights.
    """

    technique: DynamicSurgery
    loudness: Tensor


@dataclass(eq=False)
class TrainedLeaf:
    """What keeps zeros and number format of a leaf while it is trained.

    Roundings and zeros let gradients through to the dense weights as if they were not there (the straight-through
    estimator; Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013). Alongside the dense
    weights, which are in the units of `fmt`, a gain of each output channel is trained: its scale, the step of Esser
    et al., Learned Step Size Quantization, 2020, with a plain gradient.

    Attributes:
        name: of the module that holds the weights.
        fmt: number format at the start, None for floats.
        mask: boolean like the weights, False where they are zero; None where all are free. All of them are in the
            form of `layers.weight_of`.
        surgery: what changes the mask in training, or None.
        frozen: boolean like the weights, which of them incremental quantisation has rounded; None otherwise.
    """

    name: str
    fmt: WeightFormat | None = None
    mask: Tensor | None = None
    surgery: Surgery | None = None
    frozen: Tensor | None = None

    def dense(self, weight: Tensor, unrounded: Tensor, unpruned: Tensor) -> Tensor:
        """Returns the weights to start from: the network runs on the same as before training.

        Weights start where they were before they were rounded, so that those near a border may soon cross it; but in
        the middle of their cell where the rounding has put them into another than the nearest.

        Args:
            weight: what the layer runs on.
            unrounded: the same in full precision.
            unpruned: likewise before surgery took any away.
        """
        start = weight
        if self.fmt is not None:
            start = torch.where(self.fmt.encode(unrounded) == self.fmt.encode(weight), unrounded, weight)
        return start if self.surgery is None or self.mask is None else torch.where(self.mask, start, unpruned)

    def weight(self, dense: Tensor, gain: Tensor | None, final: bool) -> Tensor:
        """Returns what the network runs on.

        Args:
            dense: the trained weights.
            gain: logarithms of what the output channels' scales are multiplied by `(out,)`, or None.
            final: whether incremental quantisation rounds all weights.
        """
        values = dense.detach()
        if self.fmt is not None:
            values = self.scaled(gain).decode(self.fmt.encode(values)).to(dense.dtype)
            if self.frozen is not None and not final:
                unrounded = dense.detach() if gain is None else dense.detach() * _column(gain.exp(), dense)
                values = torch.where(self.frozen, values, unrounded)
        through = dense - dense.detach()  # zeros whose gradient is that of the values
        if self.frozen is not None:
            through = through * ~self.frozen
        if self.mask is None:
            return values + through
        return values * self.mask + through if self.surgery is not None else (values + through) * self.mask

    def scaled(self, gain: Tensor | None) -> WeightFormat:
        """Returns the format with its gain, its scales as precise as they were: longer ones would swell the file."""
        assert self.fmt is not None
        if gain is None:
            return self.fmt
        scaled = self.fmt.scaled(gain.exp())
        return scaled.short() if self.fmt.is_short else scaled

    def splice(self, dense: Tensor) -> None:
        """Lets weights leave and come back."""
        if self.surgery is not None and self.mask is not None:
            scores = dense.detach().abs() * self.surgery.loudness
            self.mask = self.surgery.technique.next_mask(scores, self.mask)

    def freeze(self, dense: Tensor, portion: float) -> None:
        """Rounds the largest of the weights that are still free in place, until a portion of all is frozen.

        Source: Zhou et al., Incremental Network Quantization, 2017, section 2.2 (partition by magnitude). Departure:
        the format is the one that the recipe found, and weights start from its values.
        """
        if self.fmt is None:
            return
        frozen = torch.zeros_like(dense, dtype=torch.bool) if self.frozen is None else self.frozen
        scores = dense.detach().abs().masked_fill(frozen, torch.inf).flatten()
        chosen = scores.argsort(descending=True, stable=True)[: round(portion * scores.numel())]
        self.frozen = torch.zeros_like(frozen).flatten().index_fill_(0, chosen, True).view_as(dense)
        with torch.no_grad():
            dense.copy_(torch.where(self.frozen, self.fmt.decode(self.fmt.encode(dense)).to(dense.dtype), dense))


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.dim() - 1))
