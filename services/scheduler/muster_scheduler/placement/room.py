"""What is free on the agents while one plan grows, devices among it."""

from __future__ import annotations

from muster_scheduler.placement.classes import Spread
from muster_scheduler.placement.devices import WHOLE, Devices, device_fits, pick_devices
from muster_scheduler.placement.snapshot import BoolArray, Group, IntArray, Snapshot

# Up to here a loop over plain numbers beats a dozen array operations (measured: they meet at
# about 24 rows), which also makes it the number of corrections that are worth a new scan.
FEW_ROWS = 24


class Room:
    """What is free on each row while one plan grows; the snapshot itself is not touched.

    Rows are held as plain numbers, because a placement reads and writes a handful of them.
    """

    __slots__ = (
        "_array",
        "_crowds",
        "_loaded",
        "_written",
        "devices",
        "placed",
        "snapshot",
        "stamps",
    )

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._crowds: dict[Group, dict[int, int]] = {}
        self.devices = {k: DeviceRoom(free) for k, free in snapshot.device_free.items()}
        # The row of each placement, in order, and how many there were on each row.
        self.placed: list[int] = []
        self.stamps: dict[int, int] = {}
        self._array: IntArray | None = None
        self._written = 0
        self._loaded: dict[int, tuple[list[int], list[int], float]] = {}
        if snapshot.row_count <= FEW_ROWS:
            columns = snapshot.free.tolist(), snapshot.capacity.tolist(), snapshot.health.tolist()
            self._loaded = dict(enumerate(zip(*columns, strict=True)))

    def row(self, row: int) -> tuple[list[int], list[int], float]:
        """(free, capacity, health) of the row."""
        found = self._loaded.get(row)
        if found is None:
            snapshot = self.snapshot
            found = (
                snapshot.free[row].tolist(),
                snapshot.capacity[row].tolist(),
                snapshot.health.item(row),
            )
            self._loaded[row] = found
        return found

    def crowd(self, group: Group) -> dict[int, int]:
        """How many tasks of the group each row holds, rows that hold none apart."""
        found = self._crowds.get(group)
        if found is None:
            found = self._crowds[group] = dict(self.snapshot.crowds.get(group, {}))
        return found

    def admits(self, row: int, spread: tuple[Spread, ...]) -> bool:
        return all(self.crowd(one.group).get(row, 0) < one.most for one in spread)

    def place(self, row: int, columns: tuple[tuple[int, int], ...]) -> None:
        """A task that wants no devices and is of no group."""
        free = self.row(row)[0]
        for column, amount in columns:
            free[column] -= amount
        self.stamps[row] = self.stamps.get(row, 0) + 1
        self.placed.append(row)

    def place_specially(
        self, row: int, columns: tuple[tuple[int, int], ...], spread: tuple[Spread, ...]
    ) -> Devices:
        """Any task; returns the devices that it is given."""
        self.place(row, columns)
        for one in spread:
            crowd = self.crowd(one.group)
            crowd[row] = crowd.get(row, 0) + 1
        return {
            self.snapshot.names[column]: self.devices[column].take(row, amount)
            for column, amount in columns
            if column in self.devices
        }

    def array(self) -> IntArray:
        """int64 [M, K], free on every row; read only, until the next placement."""
        if not self.placed:
            return self.snapshot.free
        if self._array is None:
            self._array = self.snapshot.free.copy(order="K")
        for row in set(self.placed[self._written :]):
            self._array[row] = self._loaded[row][0]
        self._written = len(self.placed)
        return self._array


class DeviceRoom:
    """What is free on each device of one resource while a plan grows."""

    __slots__ = ("_free", "_owned")

    def __init__(self, free: IntArray) -> None:
        self._free, self._owned = free, False

    def fits(self, row: int, amount: int) -> bool:
        return pick_devices(self._free[row].tolist(), amount) is not None

    def fitting(self, amount: int) -> BoolArray:
        return device_fits(self._free, amount)

    def take(self, row: int, amount: int) -> tuple[int, ...]:
        indices = pick_devices(self._free[row].tolist(), amount)
        assert indices is not None, "a row was chosen whose devices do not fit"
        if not self._owned:
            self._free, self._owned = self._free.copy(), True
        self._free[row, list(indices)] -= min(amount, WHOLE)
        return indices
