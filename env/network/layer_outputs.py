"""A look at what goes into and comes out of each layer of a network while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from plywise.env.network.channel_groups import NORMS
from plywise.env.network.graph import read_by
from plywise.env.network.network import Network

Record = Callable[[str, nn.Module, Tensor, Tensor], Tensor | None]


@contextmanager
def layer_outputs(network: Network, record: Record) -> Iterator[None]:
    """Calls `record(name, module, inputs, outputs)` for each layer, tied one and remaining BatchNorm of a forward pass.

    Runs on nothing, such as those of an expert that no input chooses, are left out. What it returns, if anything, takes
    the place of the outputs.
    """
    names = {layer.name for layer in (*network.layers, *network.tied)}

    def hook(name: str) -> Callable[..., Tensor | None]:
        def after(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], outputs: Tensor) -> Tensor | None:
            inputs = read_by(args, keywords)
            assert inputs is not None, f"{name} has outputs and no inputs"
            return record(name, module, inputs, outputs) if outputs.numel() else None

        return after

    handles = [
        module.register_forward_hook(hook(name), with_kwargs=True)
        for name, module in network.modules.items()
        if name in names or isinstance(module, NORMS)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
