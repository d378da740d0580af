"""What a plan that is put together really costs: the file's bytes, the latency and the energy in its real shapes."""

import tempfile
from pathlib import Path

from torch import nn

from plywise.compressors.packing.packed_file import save_packed
from plywise.compressors.packing.packed_module import packed_size
from plywise.env.bank.bank import Stitched
from plywise.env.costs.chains import realised_chain
from plywise.env.costs.energy import energy_mj, tied_energy
from plywise.env.costs.network_latency import NetworkLatency
from plywise.env.costs.trial_graphs import trimmed_in
from plywise.env.network.network import Network


class PlanCosts:
    """Costs of plans of one network on one device."""

    def __init__(self, network: Network, whole: NetworkLatency) -> None:
        """Prepares.

        Args:
            network: that the plans are of.
            whole: its latencies on the device.
        """
        self._network, self._whole = network, whole

    def measure(self, stitched: Stitched) -> tuple[float, float, float]:
        """Returns the file's bytes, the latency (its graph is timed, which takes long) and the modelled energy."""
        modules = self._realised(stitched)
        chains = {layer.name: realised_chain(modules[layer.name], layer) for layer in self._network.layers}
        storage = float(self.packed_bytes(stitched.model))
        latency = self._whole.measured(chains, trimmed_in(self._network, stitched.model))
        units = self._whole.latency.device.energies
        energy = sum(layer.runs * energy_mj(chains[layer.name], units) for layer in self._network.layers)
        return storage, latency, energy + tied_energy(self._network, units)

    def pack(self, model: nn.Module, path: Path) -> int:
        """Writes the file of packed weights that is handed over and returns its bytes."""
        return save_packed(model, self._network.original, path, {"model": self._network.name})

    def packed_bytes(self, model: nn.Module) -> int:
        """Returns the bytes of the file that `pack` would write."""
        with tempfile.TemporaryDirectory() as folder:
            return self.pack(model, Path(folder) / "weights")

    def bytes_outside(self, stitched: Stitched) -> int:
        """Returns the bytes of the file that no layer accounts for."""
        return self.packed_bytes(stitched.model) - sum(map(packed_size, self._realised(stitched).values()))

    def _realised(self, stitched: Stitched) -> dict[str, nn.Module]:
        modules, replaced = self._network.modules, stitched.replaced
        return {layer.name: replaced.get(layer.name, modules[layer.name]) for layer in self._network.layers}
