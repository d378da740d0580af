"""A look at what goes into and comes out of each layer of a network while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from plywise.env.network.channel_groups import NORMS
from plywise.env.network.network import Network

Record = Callable[[str, nn.Module, Tensor, Tensor], None]


@contextmanager
def layer_outputs(network: Network, record: Record) -> Iterator[None]:
    """Calls `record(name, module, inputs, outputs)` for each layer and remaining BatchNorm of a forward pass."""
    names = {layer.name for layer in network.layers}

    def hook(name: str) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], outputs: Tensor) -> None:
            record(name, module, args[0], outputs)

        return after

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in network.modules.items()
        if name in names or isinstance(module, NORMS)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
