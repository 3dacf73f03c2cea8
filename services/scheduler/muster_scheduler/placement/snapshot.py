"""The agents as arrays: a table that is kept up to date one change at a time, and its view."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from muster.domain.errors import InvalidInput, NotFound
from muster.domain.resources import ResourceKind, ResourceVector, kind_of
from muster_scheduler.placement.devices import (
    NO_DEVICES,
    DeviceGrid,
    Devices,
    check_amount,
    pick_devices,
)

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
# A kind of tasks of which agents hold only so many; see Spread in `classes`.
Group = tuple[str, str, str]
_Number = TypeVar("_Number", np.int64, np.float64)

# The columns that every table starts with, in this order; others follow as they are first met.
FIRST_COLUMNS = ("cpu", "memory", "network", "slots")
# Eight times what one vector may name. Columns are never dropped, so agents that come and go
# under ever new resource names must not widen the arrays for ever.
MAX_COLUMNS = 256
CORDONED = "cordoned"

_FIRST_ROWS = 16
# Changes that are remembered for catching up; who is further behind looks at every row again,
# which is cheaper by then.
_REMEMBERED_CHANGES = 4096


class ChangeLog:
    """The rows whose skills, labels or placeability changed, in the order of the changes.

    `layout` counts how often the table got more columns, and so perhaps other arrays.
    """

    __slots__ = ("_forgotten", "_rows", "layout")

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._forgotten = 0
        self.layout = 0

    @property
    def version(self) -> int:
        """How many changes there were."""
        return self._forgotten + len(self._rows)

    def note(self, row: int) -> None:
        if len(self._rows) == _REMEMBERED_CHANGES:
            half = _REMEMBERED_CHANGES // 2
            del self._rows[:half]
            self._forgotten += half
        self._rows.append(row)

    def since(self, version: int) -> list[int] | None:
        """Rows changed after `version`, oldest first; None when that is no longer known."""
        start = version - self._forgotten
        return self._rows[start:] if start >= 0 else None


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The agents as a strategy sees them. Nobody writes to the arrays.

    M rows, K columns. A row is one agent, or empty (`alive` False, capacity 0): rows are reused.
    Strategies break ties by the lower row. A snapshot shares the memory of the table that gave
    it: it is sound until the table's next change and costs nothing; `freeze` copies it.

    names      K resource names; column k of every [M, K] array is names[k]; `columns` inverts it
    capacity   int64 [M, K], base units
    used       int64 [M, K], held by placed tasks; may pass capacity after an agent shrank
    free       int64 [M, K], capacity - used; may be negative
    divisor    float64 [M, K], max(capacity, 1): shares are computed without dividing by zero
    alive      bool [M], the row holds an agent
    placeable  bool [M], it may receive new work; False where not alive
    health     float64 [M], 0 (worst) to 1
    agent_ids, skills, labels, why_not   per row; `why_not` says why a row is not placeable
    rows       row by agent id
    device_free  int64 [M, D] by column of a device resource: thousandths free on each device of a
               row (see `devices`). Work whose devices are not known counts in `free` alone, so a
               demand on devices must fit in both
    crowds     by group, by row that holds any: how many of its tasks
    version    the changes that `log` counted when the view was taken, as `layout` its layouts;
               `log` is None when frozen
    """

    names: tuple[str, ...]
    columns: Mapping[str, int]
    capacity: IntArray
    used: IntArray
    free: IntArray
    divisor: FloatArray
    alive: BoolArray
    placeable: BoolArray
    health: FloatArray
    agent_ids: Sequence[str]
    skills: Sequence[frozenset[str]]
    labels: Sequence[Mapping[str, str]]
    why_not: Sequence[str]
    rows: Mapping[str, int]
    version: int
    layout: int
    device_free: Mapping[int, IntArray] = field(default_factory=dict)
    crowds: Mapping[Group, Mapping[int, int]] = field(default_factory=dict)
    log: ChangeLog | None = field(default=None, repr=False)

    @property
    def row_count(self) -> int:
        """M, empty rows included."""
        return len(self.capacity)

    def is_current(self) -> bool:
        """False once agents were added, removed or changed in what they are eligible for."""
        log = self.log
        return log is None or (log.version == self.version and log.layout == self.layout)

    def freeze(self) -> Snapshot:
        """A copy that outlives changes of the table, for work outside the scheduler's loop."""
        rows = self.row_count
        return Snapshot(
            names=self.names,
            columns={name: k for k, name in enumerate(self.names)},
            capacity=self.capacity.copy(order="K"),
            used=self.used.copy(order="K"),
            free=self.free.copy(order="K"),
            divisor=self.divisor.copy(order="K"),
            alive=self.alive.copy(),
            placeable=self.placeable.copy(),
            health=self.health.copy(),
            agent_ids=tuple(self.agent_ids[:rows]),
            skills=tuple(self.skills[:rows]),
            labels=tuple(self.labels[:rows]),
            why_not=tuple(self.why_not[:rows]),
            rows=dict(self.rows),
            version=self.version,
            layout=self.layout,
            device_free={k: free.copy() for k, free in self.device_free.items()},
            crowds={group: dict(counts) for group, counts in self.crowds.items()},
        )


class _Due:
    __slots__ = ("count", "demand_row")

    def __init__(self, demand_row: IntArray, count: int) -> None:
        self.demand_row = demand_row
        self.count = count


class AgentTable:
    """The scheduler's agents. Each change touches one row; `view` copies nothing.

    A new agent takes the lowest empty row, else a new one at the end: while no agent is removed,
    row order is the order of first appearance. Arrays lie column by column in memory, because
    scans read few columns of all rows.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = FIRST_COLUMNS
        self._columns = {name: k for k, name in enumerate(FIRST_COLUMNS)}
        shape = (len(FIRST_COLUMNS), _FIRST_ROWS)
        self._capacity = np.zeros(shape, np.int64)
        self._used = np.zeros(shape, np.int64)
        self._free = np.zeros(shape, np.int64)
        self._divisor = np.ones(shape, np.float64)
        self._placeable = np.zeros(_FIRST_ROWS, np.bool_)
        self._alive = np.zeros(_FIRST_ROWS, np.bool_)
        self._health = np.ones(_FIRST_ROWS, np.float64)
        self._agent_ids: list[str] = []
        self._skills: list[frozenset[str]] = []
        self._labels: list[Mapping[str, str]] = []
        self._why_not: list[str] = []
        self._rows: dict[str, int] = {}
        self._empty_rows: list[int] = []
        self._devices: dict[int, DeviceGrid] = {}
        self._crowds: dict[Group, dict[int, int]] = {}
        self._log = ChangeLog()
        self._view: Snapshot | None = None
        # What was taken and given back since the arrays were brought up to date, by row and
        # demand: a task costs a sum of two integers, an array is touched once per view.
        self._due: dict[tuple[int, int], _Due] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def has_devices(self) -> bool:
        """Whether any agent has ever offered, or any task ever held, a resource of kind device."""
        return bool(self._devices)

    def __contains__(self, agent_id: object) -> bool:
        return agent_id in self._rows

    def upsert(
        self,
        agent_id: str,
        capacity: ResourceVector,
        skills: frozenset[str],
        labels: Mapping[str, str],
        placeable: bool,
        health: float = 1.0,
        why_not: str = CORDONED,
    ) -> int:
        """Add the agent, or replace what is known of it; what it uses stays. Returns its row.

        `why_not` is shown to people while `placeable` is False. Raises InvalidInput for a health
        outside 0 to 1, more than MAX_DEVICES devices of a resource, and at MAX_COLUMNS distinct
        resource names; nothing is changed then.
        """
        _check_health(agent_id, health)
        _check_devices(capacity)
        self._intern_all(capacity)
        self._settle()
        row = self._rows.get(agent_id)
        if row is None:
            row = self._new_row(agent_id)
        amounts = self._capacity[:, row]
        amounts[:] = 0
        for name, amount in capacity.items():
            amounts[self._columns[name]] = amount
        self._free[:, row] = amounts - self._used[:, row]
        self._divisor[:, row] = np.maximum(amounts, 1)
        for column, grid in self._devices.items():
            if grid.set_amount(row, int(amounts[column])):
                self._relay()
        self._health[row] = health
        if self._skills[row] != skills or self._labels[row] != labels:
            self._skills[row] = skills
            self._labels[row] = dict(labels)
            self._note(row)
        self._place(row, placeable, why_not)
        return row

    def remove(self, agent_id: str) -> None:
        """Forget the agent and what it used; nothing is taken or given back on its row after.

        Raises NotFound.
        """
        row = self.row_of(agent_id)
        self._settle()
        del self._rows[agent_id]
        heapq.heappush(self._empty_rows, row)
        for amounts in (self._capacity, self._used, self._free):
            amounts[:, row] = 0
        self._divisor[:, row] = 1.0
        for grid in self._devices.values():
            grid.clear(row)
        for group in [g for g, counts in self._crowds.items() if row in counts]:
            self._set_crowd(group, row, 0)
        self._alive[row] = self._placeable[row] = False
        self._health[row] = 1.0
        self._agent_ids[row] = self._why_not[row] = ""
        self._skills[row] = frozenset()
        self._labels[row] = {}
        self._note(row)

    def set_placeable(self, agent_id: str, placeable: bool, why_not: str = CORDONED) -> None:
        """Raises NotFound."""
        self._place(self.row_of(agent_id), placeable, why_not)

    def set_health(self, agent_id: str, health: float) -> None:
        """`health` is 0 (worst) to 1. Raises NotFound, InvalidInput."""
        _check_health(agent_id, health)
        self._health[self.row_of(agent_id)] = health

    def row_of(self, agent_id: str) -> int:
        """Raises NotFound."""
        row = self._rows.get(agent_id)
        if row is None:
            raise NotFound("agent", agent_id)
        return row

    def agent_id_at(self, row: int) -> str:
        """Empty where no agent is."""
        return self._agent_ids[row]

    def demand_row(self, demand: ResourceVector) -> IntArray:
        """The demand over the table's columns, for `take` and `give_back`.

        Stays right when columns are added later. Meant for work that an agent holds: that a
        client only asks for a resource gives it no column.
        """
        self._intern_all(demand)
        amounts = np.zeros(len(self._names), np.int64)
        for name, amount in demand.items():
            amounts[self._columns[name]] = amount
        return amounts

    def take(self, row: int, demand_row: IntArray, devices: Devices = NO_DEVICES) -> None:
        """Charge a placed task to its agent; never refuses, for the placement already happened.

        A leader that reconciles meets agents which hold more than their capacity. Without
        `devices` a demand on some is counted in the amounts alone.
        """
        assert row >= 0, "an unplaced task takes nothing"
        assert self._agent_ids[row], "a task was charged to a row without an agent"
        self._add(row, demand_row, 1)
        if devices:
            self._add_devices(row, demand_row, devices, -1)

    def give_back(self, row: int, demand_row: IntArray, devices: Devices = NO_DEVICES) -> None:
        """The opposite of `take`, once per taken task, with the same demand and devices."""
        assert row >= 0, "an unplaced task gives nothing back"
        self._add(row, demand_row, -1)
        if devices:
            self._add_devices(row, demand_row, devices, 1)

    def join(self, row: int, group: Group) -> None:
        """The agent holds one more task of the group; as `take`, this never refuses."""
        self._set_crowd(group, row, self._crowds.get(group, {}).get(row, 0) + 1)

    def leave(self, row: int, group: Group) -> None:
        """The opposite of `join`, once per task that joined."""
        count = self._crowds.get(group, {}).get(row, 0) - 1
        assert count >= 0, "more tasks left a group than had joined it"
        self._set_crowd(group, row, count)

    def _set_crowd(self, group: Group, row: int, count: int) -> None:
        counts = self._crowds.setdefault(group, {})
        if count:
            counts[row] = count
        else:
            del counts[row]
            if not counts:
                del self._crowds[group]

    def asks_for_devices(self, demand_row: IntArray) -> bool:
        """Whether the demand is for any resource of kind device."""
        if not self._devices:
            return False
        size = demand_row.shape[0]
        return any(column < size and demand_row[column] for column in self._devices)

    def accepts(self, row: int, demand_row: IntArray, devices: Devices) -> bool:
        """Whether the row has these devices, as many as are asked for of each resource.

        What else is on them is not looked at.
        """
        size = demand_row.shape[0]
        wanted = {
            self._names[column]: int(demand_row[column])
            for column in self._devices
            if column < size and demand_row[column]
        }
        return wanted.keys() == devices.keys() and all(
            self._devices[self._columns[name]].has(row, devices[name], amount)
            for name, amount in wanted.items()
        )

    def fits_on(self, row: int, demand_row: IntArray, devices: Devices) -> bool:
        """Whether the row has these devices and they have room for the demand."""
        return self.accepts(row, demand_row, devices) and all(
            self._devices[self._columns[name]].has_room(
                row, indices, int(demand_row[self._columns[name]])
            )
            for name, indices in devices.items()
        )

    def devices_for(self, row: int, demand_row: IntArray) -> Devices:
        """The devices that a task is best given of what is free on the row now.

        A resource of which the row has not enough is left out: its amount alone will count.
        """
        if not self._devices:
            return NO_DEVICES
        found = {}
        for column, grid in self._devices.items():
            amount = int(demand_row[column]) if column < demand_row.shape[0] else 0
            indices = pick_devices(grid.free[row].tolist(), amount) if amount else None
            if indices is not None:
                found[self._names[column]] = indices
        return found

    def _add_devices(self, row: int, demand_row: IntArray, devices: Devices, sign: int) -> None:
        for name, indices in devices.items():
            column = self._columns[name]
            self._devices[column].add(row, indices, int(demand_row[column]), sign)

    def _add(self, row: int, demand_row: IntArray, count: int) -> None:
        due = self._due.get((row, id(demand_row)))
        if due is None:
            # Holding the array keeps its id from meaning another.
            self._due[(row, id(demand_row))] = _Due(demand_row, count)
        else:
            due.count += count

    def _settle(self) -> None:
        """Brings the arrays up to date with what was taken and given back."""
        if not self._due:
            return
        due, self._due = self._due, {}
        for (row, _), sums in due.items():
            if sums.count:
                columns = sums.demand_row.shape[0]
                amounts = sums.demand_row * sums.count
                self._used[:columns, row] += amounts
                self._free[:columns, row] -= amounts
        for row in {row for row, _ in due}:
            assert self._used[:, row].min() >= 0, "more was given back than had been taken"

    def view(self) -> Snapshot:
        """The table as it is now; see Snapshot for how long that holds."""
        self._settle()
        view = self._view
        if view is not None:
            return view
        rows, columns = len(self._agent_ids), len(self._names)
        self._view = view = Snapshot(
            names=self._names,
            columns=self._columns,
            capacity=self._capacity.T[:rows, :columns],
            used=self._used.T[:rows, :columns],
            free=self._free.T[:rows, :columns],
            divisor=self._divisor.T[:rows, :columns],
            alive=self._alive[:rows],
            placeable=self._placeable[:rows],
            health=self._health[:rows],
            agent_ids=self._agent_ids,
            skills=self._skills,
            labels=self._labels,
            why_not=self._why_not,
            rows=self._rows,
            version=self._log.version,
            layout=self._log.layout,
            device_free={k: grid.free[:rows] for k, grid in self._devices.items()},
            crowds=self._crowds,
            log=self._log,
        )
        return view

    def _note(self, row: int) -> None:
        self._log.note(row)
        self._view = None

    def _place(self, row: int, placeable: bool, why_not: str) -> None:
        self._why_not[row] = "" if placeable else why_not
        if bool(self._placeable[row]) != placeable:
            self._placeable[row] = placeable
            self._note(row)

    def _new_row(self, agent_id: str) -> int:
        if self._empty_rows:
            row = heapq.heappop(self._empty_rows)
            self._agent_ids[row] = agent_id
        else:
            row = len(self._agent_ids)
            if row == self._alive.shape[0]:
                self._resize(self._capacity.shape[0], 2 * row)
            self._agent_ids.append(agent_id)
            self._skills.append(frozenset())
            self._labels.append({})
            self._why_not.append("")
        self._rows[agent_id] = row
        self._alive[row] = True
        self._note(row)
        return row

    def _intern_all(self, vector: ResourceVector) -> None:
        fresh = [name for name, _ in vector.items() if name not in self._columns]
        if not fresh:
            return
        wanted = len(self._names) + len(fresh)
        if wanted > MAX_COLUMNS:
            limit = f"a cluster has at most {MAX_COLUMNS} distinct resource names"
            raise InvalidInput("capacity", fresh[0], limit)
        for name in fresh:
            if kind_of(name) is ResourceKind.DEVICE:
                self._devices[len(self._columns)] = DeviceGrid(self._alive.shape[0])
            self._columns[name] = len(self._columns)
        self._names += tuple(fresh)
        allocated = self._capacity.shape[0]
        if wanted > allocated:
            self._resize(min(max(wanted, 2 * allocated), MAX_COLUMNS), self._alive.shape[0])
        self._relay()

    def _relay(self) -> None:
        """Arrays were replaced or got columns."""
        self._log.layout += 1
        self._view = None

    def _resize(self, columns: int, rows: int) -> None:
        self._capacity = _grown(self._capacity, columns, rows, 0)
        self._used = _grown(self._used, columns, rows, 0)
        self._free = _grown(self._free, columns, rows, 0)
        self._divisor = _grown(self._divisor, columns, rows, 1)
        old = self._alive.shape[0]
        if rows > old:
            self._alive = np.append(self._alive, np.zeros(rows - old, np.bool_))
            self._placeable = np.append(self._placeable, np.zeros(rows - old, np.bool_))
            self._health = np.append(self._health, np.ones(rows - old, np.float64))
            for grid in self._devices.values():
                grid.grow(rows)


def _grown(old: NDArray[_Number], columns: int, rows: int, fill: int) -> NDArray[_Number]:
    new = np.full((columns, rows), fill, old.dtype)
    new[: old.shape[0], : old.shape[1]] = old
    return new


def _check_health(agent_id: str, health: float) -> None:
    if not 0.0 <= health <= 1.0:
        raise InvalidInput(f"agents.{agent_id}.health", health, "must be from 0 to 1")


def _check_devices(capacity: ResourceVector) -> None:
    for name, amount in capacity.items():
        if kind_of(name) is ResourceKind.DEVICE:
            check_amount(name, amount)
