"""Price tables of several networks as one set of padded arrays, to be read for many walks at once."""

from collections.abc import Sequence

import numpy as np

from plywise.env.arrays import Bools, Floats, Ints
from plywise.env.prices.prices import METRICS, PriceTable

GRID_TOLERANCE = 1e-5
NUM_METRICS = len(METRICS)
LATENCY = METRICS.index("latency")


class PriceStack:
    """T price tables padded to common shapes; costs as shares of each network's original cost.

    Padding layers offer `identity` at no cost and no drop, so sums over layers need no mask. There is one padding
    layer (index `num_layers`) and one padding group (index `num_groups`) more than any network has.

    Attributes:
        layers: `(T,)` number of layers of each network.
        legal, drop, slot_level: `(T, L + 1, K)` as in `PriceTable`.
        levels: `(T, Q)` kept shares, -1 on padding.
        in_share: `(T, L + 1, G + 1)`.
        follows: `(T, L + 1)` group whose level decides the layer's output, the padding group where none does.
        prunes: `(T, L + 1)` whether some slot of the layer cuts its group.
        affected: `(T, L + 1, A)` layers whose cost changes with the group that the layer decides, padded.
        affected_share: `(T, L + 1, A)` share of their input channels that the group makes up.
        affected_follows: `(T, L + 1, A)` whether their output is cut with the group.
        base: `(T, L + 1, K, M)` costs of all slots where nothing upstream was cut.
        saving: `(T, L + 1, K, M)` what a slot's cut saves in the affected layers, all of them at identity.
        integers: `(T, L + 1, K)` whether a slot computes on integers.
        nearest: `(T, L + 1)` as in `PriceTable`, the padding layer where there is none.
        border: `(T, L + 1)` as in `PriceTable`, as shares of the original's latency.
        readers: `(T, L + 1, R)` layers whose `nearest` a layer is, padded.
        fixed: `(T, M)` share of the original's cost outside all layers.
        room: `(T,)` the largest possible drop, points.
        samples: `(T,)` validation samples that drops are counted on.
    """

    def __init__(self, tables: Sequence[PriceTable]) -> None:
        self.tables = tuple(tables)
        self.num_layers = max(table.num_layers for table in tables)
        self.num_slots = max(table.num_slots for table in tables)
        self.num_groups = max(table.num_groups for table in tables)
        self.num_levels = max(len(table.keep_levels) for table in tables)
        shape = (len(tables), self.num_layers + 1, self.num_slots)
        self.layers = np.array([table.num_layers for table in tables])
        self.room = np.array([table.accuracy - table.chance for table in tables])
        self.samples = np.array([table.samples for table in tables], np.float32)
        self.fixed = np.stack([table.fixed / table.original for table in tables]).astype(np.float64)
        self.legal = np.zeros(shape, bool)
        self.legal[:, :, 0] = True
        self.drop = np.zeros(shape, np.float32)
        self.slot_level = np.zeros(shape, np.int64)
        self.levels = np.full((len(tables), self.num_levels), -1.0, np.float32)
        self.in_share = np.zeros((*shape[:2], self.num_groups + 1), np.float32)
        self.follows = np.full(shape[:2], self.num_groups)
        self.prunes = np.zeros(shape[:2], bool)
        self.integers = np.zeros(shape, bool)
        self.nearest = np.full(shape[:2], self.num_layers)
        self.border = np.zeros(shape[:2], np.float32)
        self.leader = np.full((len(tables), self.num_groups + 1), self.num_layers)
        q = self.num_levels
        self._cost = np.zeros((*shape[:2], q, q, self.num_slots, NUM_METRICS), np.float32)
        for index, table in enumerate(tables):
            self._fill(index, table)
        self._flat = self._cost.reshape(-1, NUM_METRICS)
        self._menus = self._cost.reshape(-1, self.num_slots, NUM_METRICS)
        self.base = np.ascontiguousarray(self._cost[:, :, 0, 0])
        self._last = (self.levels >= 0).sum(1) - 1
        self._link()
        self.saving = self._savings()

    def _fill(self, index: int, table: PriceTable) -> None:
        count, slots, levels = table.num_layers, table.num_slots, len(table.keep_levels)
        self.legal[index, :count, :slots] = table.legal
        self.drop[index, :count, :slots] = table.drop
        self.slot_level[index, :count, :slots] = np.where(table.legal, table.recipe_level, 0)
        self.levels[index, :levels] = table.keep_levels
        self.in_share[index, :count, : table.num_groups] = table.in_share
        self.integers[index, :count, :slots] = table.integers
        self.nearest[index, :count] = np.where(table.nearest >= 0, table.nearest, self.num_layers)
        self.border[index, :count] = table.border / table.original[LATENCY]
        grouped = table.out_group >= 0
        self.follows[index, :count] = np.where(grouped & ~table.leads, table.out_group, self.num_groups)
        self.prunes[index, :count] = table.leads & (self.slot_level[index, :count] > 0).any(1)
        for layer in np.flatnonzero(self.prunes[index]):
            self.leader[index, table.out_group[layer]] = layer
        share = table.cost / table.original[:, None, None, None, None]  # (M, L, K, Q, Q)
        self._cost[index, :count, :levels, :levels, :slots] = share.transpose(1, 3, 4, 2, 0)

    def _link(self) -> None:
        """Lists, for each layer that prunes, the later layers that its group touches."""
        found: dict[tuple[int, int], Ints] = {}
        for index, layer in np.argwhere(self.prunes):
            group = int(self.tables[index].out_group[layer])
            touched = (self.in_share[index, :, group] > 0) | (self.follows[index] == group)
            touched[: layer + 1] = False
            found[int(index), int(layer)] = np.flatnonzero(touched)
        width = max((len(touched) for touched in found.values()), default=1)
        self.affected = np.full((*self.prunes.shape, max(width, 1)), self.num_layers)
        self.affected_share = np.zeros(self.affected.shape, np.float32)
        self.affected_follows = np.zeros(self.affected.shape, bool)
        for (index, layer), touched in found.items():
            group = int(self.tables[index].out_group[layer])
            self.affected[index, layer, : len(touched)] = touched
            self.affected_share[index, layer, : len(touched)] = self.in_share[index, touched, group]
            self.affected_follows[index, layer, : len(touched)] = self.follows[index, touched] == group

        readers = [[np.flatnonzero(row == layer) for layer in range(self.num_layers)] for row in self.nearest]
        width = max(len(each) for row in readers for each in row)
        self.readers = np.full((*self.prunes.shape, max(width, 1)), self.num_layers)
        for index, row in enumerate(readers):
            for layer, each in enumerate(row):
                self.readers[index, layer, : len(each)] = each

    def _savings(self) -> Floats:
        """Prices every cut on its own, with all affected layers at identity."""
        saving = np.zeros((*self.legal.shape, NUM_METRICS), np.float32)
        index, layer = np.nonzero(self.prunes)
        touched = self.affected[index, layer][:, None]  # (N, 1, A)
        lost: Floats = 1.0 - self.levels[index]  # (N, Q); padding levels are never looked up
        kept: Floats = np.maximum(1.0 - self.affected_share[index, layer][:, None] * lost[:, :, None], 0.0)  # (N, Q, A)
        level = np.arange(self.num_levels)[None, :, None]
        out = np.where(self.affected_follows[index, layer][:, None], level, 0)
        table = index[:, None, None]
        whole = self.cost(table, touched, 0, np.ones_like(kept), 0)
        after = self.cost(table, touched, 0, kept, out)
        of_level = (whole - after).sum(2)  # (N, Q, M)
        saving[index, layer] = np.take_along_axis(of_level, self.slot_level[index, layer][..., None], 1)
        return saving

    def _rows(self, table: Ints, layer: Ints, kept: Floats, out: "Ints | int") -> tuple[Ints, Ints, Floats]:
        """Finds the rows of the two neighbouring input levels and the part of the way between them."""
        low = np.full(kept.shape, -1)
        for level in self.levels.T:  # few levels: a column each is faster than one array with an axis more
            low += level[table] >= kept - GRID_TOLERANCE
        high = np.minimum(low + 1, self._last[table])
        flat, base = self.levels.ravel(), table * self.num_levels
        upper, lower = flat[base + low], flat[base + high]
        part = np.clip((upper - kept) / np.where(high > low, upper - lower, 1.0), 0.0, 1.0) * (high > low)
        row = (table * (self.num_layers + 1) + layer) * self.num_levels
        return (row + low) * self.num_levels + out, (row + high) * self.num_levels + out, part

    def cost(self, table: Ints, layer: Ints, slot: "Ints | int", kept: Floats, out: "Ints | int") -> Floats:
        """Returns costs `(..., M)` of one slot each, as shares of the original's.

        Args:
            table, layer, slot: indices that broadcast with `kept`.
            kept: share of the layer's input channels that upstream choices left; linear between the levels.
            out: level index of its output where it follows another layer, else 0.
        """
        low, high, part = self._rows(table, layer, kept, out)
        first = self._flat.take(low * self.num_slots + slot, axis=0)
        second = self._flat.take(high * self.num_slots + slot, axis=0)
        return first + part[..., None].astype(np.float32) * (second - first)

    def menu(self, table: Ints, layer: Ints, kept: Floats, out: "Ints | int") -> Floats:
        """Returns costs `(..., K, M)` of all slots; arguments as in `cost`."""
        low, high, part = self._rows(table, layer, kept, out)
        first = self._menus.take(low, axis=0)
        if not part.any():
            return first
        return first + part[..., None, None].astype(np.float32) * (self._menus.take(high, axis=0) - first)

    def states(self, table: Ints, plans: Ints) -> tuple[Floats, Ints]:
        """Returns the input kept shares and the output levels that whole plans lead to, both `(n, L + 1, P)`.

        Args:
            table: `(n,)`.
            plans: `(n, L + 1, P)` slots.
        """
        leader = self.leader[table]  # (n, G + 1)
        row = np.arange(len(table))[:, None]
        level = np.take_along_axis(self.slot_level[table[:, None], leader], plans[row, leader], 2)  # (n, G + 1, P)
        lost = 1.0 - self.levels[table[:, None, None], level]
        with np.errstate(invalid="ignore"):  # BLAS may raise the flag for what lies behind a row; all of this is finite
            kept = 1.0 - np.matmul(self.in_share[table], lost)
        return kept, level[row, self.follows[table]]

    def plan_costs(self, table: Ints, plans: Ints) -> Floats:
        """Returns what each layer of whole plans costs in the state the plan leads to, `(n, L + 1, P, M)`."""
        cost = self.layer_costs(table, plans)
        cost[..., LATENCY] += self.plan_borders(table, plans)
        return cost

    def layer_costs(self, table: Ints, plans: Ints) -> Floats:
        """Does what `plan_costs` does, without borders."""
        kept, out = self.states(table, plans)
        layer = np.arange(self.num_layers + 1)[None, :, None]
        return self.cost(table[:, None, None], layer, plans, kept, out)

    def plan_borders(self, table: Ints, plans: Ints) -> Floats:
        """Returns latencies that changes of the number format add to whole plans, `(n, L + 1, P)`."""
        integer, before = self._number_formats(table, plans)
        crossed: Floats = self.border[table][:, :, None] * (integer != before)
        return crossed

    def slot_borders(self, table: Ints, plans: Ints) -> Floats:
        """Returns what every slot would take more, with what its readers then take, `(n, L + 1, P, K)` latencies."""
        integer, before = self._number_formats(table, plans)
        own = self.integers[table][:, :, None]  # (n, L + 1, 1, K)
        taken: Floats = self.border[table][:, :, None, None] * (own != before[..., None])
        for readers in self.readers[table].transpose(2, 0, 1):
            theirs = np.take_along_axis(integer, readers[:, :, None], 1)
            border = np.take_along_axis(self.border[table], readers, 1)
            taken = taken + border[:, :, None, None] * (own != theirs[..., None])
        return taken

    def _number_formats(self, table: Ints, plans: Ints) -> tuple[Bools, Bools]:
        """Whether each layer of whole plans, and the one that it reads, computes on integers, `(n, L + 1, P)` both."""
        integer: Bools = np.take_along_axis(self.integers[table], plans, 2)
        return integer, np.take_along_axis(integer, self.nearest[table][:, :, None], 1)

    def padded(self, index: int, actions: Ints) -> Ints:
        """Pads plans `(P, layers)` of one network to `(1, L + 1, P)`."""
        plans = np.zeros((1, self.num_layers + 1, len(actions)), np.int64)
        plans[0, : self.layers[index]] = actions.T
        return plans
