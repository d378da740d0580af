"""How important each output channel is, by several criteria; filter pruning keeps the most important ones."""

import warnings
from collections.abc import Iterator, Mapping
from functools import cache, partial

import torch
from torch import Tensor, nn

from plywise.compressors.modules.layers import channels_last, weight_of
from plywise.env.calibration.reconstruction import reconstruction_importance
from plywise.env.network.gradients import gradients
from plywise.env.network.layer_outputs import layer_outputs
from plywise.env.network.network import Network
from plywise.env.task.batch import Batch, items_in
from plywise.env.task.judge import Judge
from plywise.env.task.samples import Samples

MEMORY = 0.9
"""Share of the earlier batches in the running mean over batches (Molchanov et al., 2019, section 4)."""

MOST_DIFFERENCES = 2**26
"""Of weights of one layer, for their distances: one by one they take 0.1 s."""


class ChannelImportance(Mapping[str, Tensor]):
    """Importance `(out,)` of a layer's channels by criterion; `reconstruction`, which takes long, on demand."""

    def __init__(self, known: Mapping[str, Tensor], reconstruction: "partial[Tensor]") -> None:
        self._known = dict(known)
        self._reconstruction = reconstruction

    def __getitem__(self, criterion: str) -> Tensor:
        return self._reconstruction() if criterion == "reconstruction" else self._known[criterion]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._known, "reconstruction"))

    def __len__(self) -> int:
        return len(self._known) + 1


def channel_importance(
    network: Network,
    samples: Samples,
    covariances: Mapping[str, Tensor],
    deviations: Mapping[str, Tensor],
    seed: int,
) -> dict[str, ChannelImportance]:
    """Returns for each layer the importance of its output channels, summed over each channel group.

    Criteria:
        l1, l2: norm of the filter (Li et al., 2017).
        median: distance to all other filters of the layer; low near their geometric median (He et al., FPGM, 2019).
        scale: deviation of the output. Behind a BatchNorm, here merged into the layer, that is the norm's scale
            (network slimming, Liu et al., 2017); layers without one are ranked alike.
        taylor: mean square of each sample's gate gradient (gradient times activation, summed over the channel): the
            diagonal of the Fisher matrix of the gates (Molchanov et al., 2019, section 3.1, gate form).
        taylor_batch: square of each batch's mean gate gradient, with the paper's memory across batches.
        taylor_second: square of the second-order loss increase `h / 2 - g` with the Fisher matrix for the Hessian.
        random: a control.
        reconstruction: see `env/calibration/reconstruction.py`; zeros for layers whose channels cannot be cut.

    Where no gradient reaches a layer (it runs under `no_grad`, or nothing reads its outputs), the variance of its
    outputs stands for the three of gradients.

    Args:
        network: what is ranked.
        samples: calibration data.
        covariances: of each layer's inputs, `(groups, features, features)`, by name.
        deviations: of each layer's output channels, `(out,)`, by name.
        seed: of the control.
    """
    generator = torch.Generator().manual_seed(seed)
    gates = gate_importance(network, samples, seed)
    own = {layer.name: gates.get(layer.name) or _without_gradient(deviations[layer.name]) for layer in network.layers}
    for name, known in own.items():
        module = network.modules[name]
        weight = weight_of(module)
        known.update(filter_importance(weight.T if isinstance(module, nn.Embedding) else weight))
        known["scale"] = deviations[name]
        known["random"] = torch.rand(deviations[name].shape, generator=generator)
    whole = cache(lambda index: reconstruction_importance(network, network.groups[index], covariances))
    late = {name: partial(torch.zeros, deviations[name].shape) for name in own}
    for index, group in enumerate(network.groups):
        sides = [side for side in group.producers if side.module in own]
        for criterion in own[group.leader]:
            shared = torch.zeros(group.channels)
            for side in sides:
                shared.index_add_(0, side.root, own[side.module][criterion][side.local])
            for side in sides:
                own[side.module][criterion] = own[side.module][criterion].index_copy(0, side.local, shared[side.root])
        for side in sides:
            late[side.module] = partial(_spread, late[side.module], partial(whole, index), side.local, side.root)
    return {name: ChannelImportance(known, late[name]) for name, known in own.items()}


def _spread(before: "partial[Tensor]", whole: "partial[Tensor]", local: Tensor, root: Tensor) -> Tensor:
    return before().index_copy(0, local, whole()[root])


def filter_importance(weight: Tensor) -> dict[str, Tensor]:
    """Returns what the filters `(out, ...)` of a layer say of its channels, `(out,)` by criterion."""
    rows = weight.float().flatten(1)
    # By a product where differences one by one would take longer than all else.
    by_product = len(rows) * rows.numel() > MOST_DIFFERENCES
    way = "use_mm_for_euclid_dist" if by_product else "donot_use_mm_for_euclid_dist"
    # In double precision, distances of huge weights stay finite.
    distances = torch.cdist(rows.double(), rows.double(), compute_mode=way)
    return {"l1": rows.abs().sum(1), "l2": rows.norm(dim=1), "median": distances.sum(1).float()}


def gate_importance(network: Network, samples: Samples, seed: int) -> dict[str, dict[str, Tensor]]:
    """Returns for each layer what the gradients of its channels' gates say, summed up batch by batch."""
    squares: dict[str, Tensor] = {}
    memory: dict[str, dict[str, Tensor]] = {}
    generator = torch.Generator().manual_seed(seed)
    for batch in samples:
        for name, gates in _gate_gradients(network, samples.judge, batch, generator).items():
            fisher, mean = gates.square().mean(0), gates.mean(0)
            squares[name] = squares.get(name, 0.0) + gates.square().sum(0)
            new = {"taylor_batch": mean.square(), "taylor_second": (fisher / 2 - mean).square()}
            old = memory.get(name, new)
            memory[name] = {key: MEMORY * old[key] + (1 - MEMORY) * new[key] for key in new}
    return {name: {"taylor": squares[name] / len(samples), **memory[name]} for name in squares}


def _without_gradient(deviation: Tensor) -> dict[str, Tensor]:
    return dict.fromkeys(("taylor", "taylor_batch", "taylor_second"), deviation.square())


def _gradients(objective: Tensor, read: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Returns gradients, None for each where torch cannot compute them, which is said."""
    try:
        return torch.autograd.grad(objective, read, allow_unused=True) if read else ()
    except RuntimeError as error:  # a forward may write over what its gradient needs
        warnings.warn(
            "channels are ranked without gradients, for torch cannot compute them: "
            f"{str(error).splitlines()[0][:200]}; write y = x * 2 in place of x.mul_(2) for a better ranking",
            stacklevel=2,
        )
        return (None,) * len(read)


def _gate_gradients(network: Network, judge: Judge, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """Returns for each layer the gradient of each sample's loss by a factor on each channel, `(samples, out)`.

    Samples of several runs count one by one; layers that no gradient reaches are left out.
    """
    names = {layer.name for layer in network.layers}
    kept: list[tuple[str, Tensor]] = []

    def keep(name: str, module: nn.Module, _: Tensor, outputs: Tensor) -> Tensor | None:
        if name not in names or not outputs.requires_grad:
            return None
        kept.append((name, outputs))
        return outputs.clone()  # the network may write over it

    with gradients(network.model), layer_outputs(network, keep):
        objective = judge.objective(network.forward(network.model, batch), batch, generator) * items_in(batch)
        read = [outputs for _, outputs in kept] if objective.requires_grad else []
        found_gradients = _gradients(objective, read)
    found: dict[str, list[Tensor]] = {}
    for (name, outputs), gradient in zip(kept, found_gradients, strict=bool(read)):
        if gradient is None:
            continue
        product = (outputs * gradient).detach()
        if channels_last(network.modules[name]):
            gates = product.reshape(product.shape[0], -1, product.shape[-1]).sum(1)
        else:
            gates = product.flatten(2).sum(2)
        found.setdefault(name, []).append(gates)
    return {name: torch.cat(runs) for name, runs in found.items()}
