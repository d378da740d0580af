"""Runs plans over samples; what a plan shares with earlier ones up to some layer is not computed again."""

import copy
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from plywise.compressors.modules.assembly import assemble
from plywise.compressors.recipes.plan import Plan
from plywise.env.bank.activation_memory import ActivationMemory, shared_memory
from plywise.env.bank.bank import Bank, Stitched
from plywise.env.bank.repair import Repair
from plywise.env.bank.unit import Unit, find_units
from plywise.env.storage.timing_lock import working
from plywise.env.task.samples import content_of

Result = TypeVar("Result")


class Scorer:
    """Stitches plans of one network and runs them.

    The output of a unit of the network follows from the recipes of all layers that have run by then: those of the
    channel groups that touch it among them, for the leader of a group runs first. Under these recipes it is
    remembered, for each batch that the network runs on, and for the calibration inputs on which it is repaired together
    with the layers that were repaired there. Another plan that begins with the same recipes gets it back, bit for bit.
    """

    def __init__(self, bank: Bank, memory: ActivationMemory | None = None) -> None:
        """Finds the units by one forward pass.

        Args:
            bank: of the network.
            memory: where outputs are kept; one that all networks of the process share where None.
        """
        self.bank = bank
        self._memory = shared_memory() if memory is None else memory
        self._units = find_units(bank.network)
        self._owner = object()  # tells its outputs from those of others in the same memory

    @working()
    def run(
        self,
        plan: Plan,
        look: Callable[[nn.Module], Result],
        settings: Repair | None = None,
        keep: int | None = None,
    ) -> tuple[Stitched, Result]:
        """Returns a plan put together and what `look` returns of it.

        What is replaced in it may be shared with other plans, so copy before changing.

        Args:
            plan: a recipe for each layer.
            look: runs the network that it is given on whatever it wants.
            settings: as for `Bank.stitch`.
            keep: how many layers later plans will begin with; outputs behind them are not remembered, for to get memory
                from the system may take as long as to compute. None where that is not known.

        Raises:
            ConfigurationError: where the plan is not one of this network, or prunes a layer that does not decide.
            UnsupportedLayerError: where a recipe cannot be used on its layer.
        """
        settings = self.bank.repair if settings is None else settings
        self.bank.check(plan)
        self._memory.begin()
        prefixes = list(self._prefixes(plan, settings))
        keep = len(prefixes) if keep is None else keep
        matched = {unit: self._memory.get(self._key(unit, prefixes, None)) for unit in self._units}
        known = {name: module for found in matched.values() if found for name, module in found[1].items()}
        outputs: dict[Unit, Tensor] = {}

        def repaired(unit: Unit, work: Any) -> Tensor:
            found = matched[unit]
            outputs[unit] = output = _own(unit, work()) if found is None else found[0]
            return _own(unit, output)

        stitched = self.bank.stitch(plan, settings, known, lambda model: self._through(model, repaired))
        for unit, output in outputs.items():
            if matched[unit] is None and unit.layers <= keep:
                inside = {name: module for name, module in stitched.replaced.items() if unit.holds(name)}
                self._memory.put(self._key(unit, prefixes, None), output, inside)
        given: list[bytes] = []  # what the whole network runs on, while it does

        def scored(unit: Unit, work: Any) -> Tensor:
            if not given:  # a part of the network is called by itself
                output: Tensor = work()
                return output
            key = self._key(unit, prefixes, given[-1])
            found = self._memory.get(key)
            if found is not None:
                return _own(unit, found[0])
            output = work()
            if unit.layers <= keep:
                self._memory.put(key, _own(unit, output), {})
            return output

        return stitched, look(_noting(self._through(stitched.model, scored), given))

    def _through(self, model: nn.Module, recall: Any) -> nn.Module:
        """Returns `model` with `recall(unit, work)` in each unit's place, where `work` runs the unit itself."""
        return assemble(
            model, {unit.name: _calling(model.get_submodule(unit.name), unit, recall) for unit in self._units}
        )

    def _key(self, unit: Unit, prefixes: list[bytes], place: bytes | None) -> tuple[object, str, bytes, bytes | None]:
        return self._owner, unit.name, prefixes[unit.layers], place

    def _prefixes(self, plan: Plan, settings: Repair) -> Iterator[bytes]:
        """Yields a hash of the first 0, 1, 2 ... recipes."""
        state = hashlib.sha256(repr(settings).encode())
        yield state.digest()
        for layer in self.bank.network.layers:
            state.update(f"\n{plan[layer.name]}".encode())
            yield state.digest()


def _own(unit: Unit, output: Tensor) -> Tensor:
    return output.clone() if unit.changed else output


def _calling(module: nn.Module, unit: Unit, recall: Any) -> nn.Module:
    """Returns a stand-in for `module` with the same attributes, whose hooks run with the module itself."""
    new = copy.copy(module)
    new._forward_hooks = type(module._forward_hooks)()
    new._forward_pre_hooks = type(module._forward_pre_hooks)()
    new.forward = lambda *args, **kwargs: recall(unit, lambda: module(*args, **kwargs))
    return new


def _noting(model: nn.Module, given: list[bytes]) -> nn.Module:
    """Returns a stand-in for `model` that puts a hash of its arguments at the end of `given` while it runs."""
    new = copy.copy(model)
    new._forward_hooks = type(model._forward_hooks)()
    new._forward_pre_hooks = type(model._forward_pre_hooks)()

    def forward(*args: Any, **kwargs: Any) -> Any:
        given.append(content_of((args, kwargs)))
        try:
            return model(*args, **kwargs)
        finally:
            given.pop()

    new.forward = forward
    return new
