"""One pass over the tasks in their order, each to the agent of least key: what the constructive
strategies share.

A strategy says how good a row is for a demand, once for all rows as arrays and once for a single
row as plain numbers; both must give the same value. The pass then finds for every task the row of
least (key, row) among those that fit, exactly as if it had looked at all rows for each task, but
looks at all of them only once per task class: a placement changes one row, so a heap of candidates
per class, corrected at the rows that were placed on, gives the next least one.

Large batches go through compiled loops instead (`fast.py`), which make the same choices.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from heapq import heapify, heappop, heappush, heapreplace
from typing import ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from muster_scheduler.placement import fast
from muster_scheduler.placement.by_agent import DemandByRow, place_by_agent
from muster_scheduler.placement.classes import Demand, Spread, TaskBatch
from muster_scheduler.placement.dense import Int32Array
from muster_scheduler.placement.devices import Devices
from muster_scheduler.placement.explain import LazyReasons
from muster_scheduler.placement.objective import evaluate
from muster_scheduler.placement.plan import Plan, Policy
from muster_scheduler.placement.room import FEW_ROWS, Room
from muster_scheduler.placement.snapshot import BoolArray, FloatArray, IntArray, Snapshot

# Tasks between two questions to `stop`: under a millisecond of work on a small cluster.
_TASKS_PER_STOP = 256
# Candidates kept beyond one per expected task, for those that other classes' tasks spoil.
_SPARE_CANDIDATES = 8
# From here on the compiled loops win, once they are loaded (measured: at 1,000 agents they meet
# the plain pass at about 60 tasks).
_TASKS_FOR_KERNELS = 64
# From here on they are worth the wait for loading them, where nobody else sees to that.
_TASKS_FOR_LOADING = 4096
# On fewer agents the plain pass is quick enough for the loops never to be worth their memory,
# 120 MiB (measured: 3 microseconds a task on 2 agents, 15 to 30 on 100, up to 115 on 5,000).
_ROWS_FOR_LOADING = 100

_Entry = tuple[float, int, int]
# Above every entry, for keys are finite.
_NO_LIMIT: _Entry = (math.inf, 0, 0)
_NOT_SCANNED: _Entry = (-math.inf, 0, 0)
_ANY_STAMP = 2**31


class ConstructiveStrategy(ABC):
    """A strategy that only has to say how good a row is."""

    name: ClassVar[str]
    # Whether placing a task never makes its agent's key smaller, for any class. Corrections can
    # then wait until the row is the best candidate.
    only_worsens: ClassVar[bool]

    @abstractmethod
    def scan_keys(
        self, snapshot: Snapshot, free: IntArray, demand: Demand | DemandByRow
    ) -> FloatArray | IntArray:
        """Keys of all rows [M] given `free` [M, K]; anything finite where the demand does not fit.

        The least key is the best, the lower row among equal ones.
        """

    @abstractmethod
    def row_key(
        self, row: int, free: list[int], capacity: list[int], health: float, demand: Demand
    ) -> float:
        """The key of one row where the demand fits: the very value that `scan_keys` gives.

        `free` (before the task is placed), `capacity` and `health` are the row's. Where a demand
        fits, the capacity of what it asks for is above 0.
        """

    def fast_pass(
        self,
        snapshot: Snapshot,  # noqa: ARG002
        tasks: TaskBatch,  # noqa: ARG002
    ) -> fast.Pass | None:
        """A pass by compiled loops that chooses as the keys say, where there is one."""
        return None

    def plan(
        self,
        snapshot: Snapshot,
        tasks: TaskBatch,
        policy: Policy,
        now_s: float,  # noqa: ARG002
        rng: Generator,  # noqa: ARG002
        stop: Callable[[], bool],
        max_steps: int,  # noqa: ARG002
    ) -> Plan:
        """See Strategy; draws nothing from `rng`."""
        assert snapshot.is_current(), "the agent table changed after this view was taken"
        devices: Mapping[int, Devices] = {}
        placed: list[int] | Int32Array
        free: Callable[[], IntArray]
        if tasks.demand_by_agent is not None:
            placed, left = place_by_agent(snapshot, tasks, self.scan_keys, stop)
            free = partial(np.asarray, left)
        elif (pass_ := self._pass_by_kernels(snapshot, tasks)) is not None:
            placed, free = fast.run(pass_, tasks.class_id, stop), pass_.free
        else:
            room = Room(snapshot)
            placed, devices = self._place_all(snapshot, tasks, room, stop)
            free = room.array
        considered = len(placed)
        reasons = LazyReasons(snapshot, tasks.classes, _classes_of_unplaced(tasks, placed), free)
        assignment = np.array(placed, np.int32)
        if considered < len(tasks):
            assignment = np.append(assignment, np.full(len(tasks) - considered, -1, np.int32))
        if not policy.measured:
            return Plan(assignment, reasons, self.name, considered, devices=devices)
        score = evaluate(snapshot, tasks, assignment, policy)
        return Plan(
            assignment,
            reasons,
            self.name,
            considered,
            score.T,
            score.U,
            score.B,
            score.J,
            devices=devices,
        )

    def _pass_by_kernels(self, snapshot: Snapshot, tasks: TaskBatch) -> fast.Pass | None:
        if len(tasks) < _TASKS_FOR_KERNELS or not fast.serves(snapshot, tasks):
            return None
        if len(tasks) >= _TASKS_FOR_LOADING and fast.may_load():
            fast.load()
        if fast.is_loaded():
            return self.fast_pass(snapshot, tasks)
        if snapshot.row_count >= _ROWS_FOR_LOADING:
            fast.miss(len(tasks))
        return None

    def _place_all(
        self,
        snapshot: Snapshot,
        tasks: TaskBatch,
        room: Room,
        stop: Callable[[], bool],
    ) -> tuple[list[int], dict[int, Devices]]:
        """Rows of the tasks that were considered; devices of the placed ones that want some."""
        devices: dict[int, Devices] = {}
        class_ids = tasks.class_id.tolist()
        expected = Counter(class_ids)
        pickers: dict[int, _Picker] = {}
        rows: list[int] = []
        for index, class_id in enumerate(class_ids):
            if index and index % _TASKS_PER_STOP == 0 and stop():
                break
            picker = pickers.get(class_id)
            if picker is None:
                picker = _Picker(
                    self,
                    room,
                    tasks.classes.demand(class_id, snapshot),
                    tasks.classes.eligible(class_id, snapshot),
                    expected[class_id],
                    tasks.classes.spread(class_id),
                )
                pickers[class_id] = picker
            row = picker.pick()
            rows.append(row)
            if row < 0:
                continue
            if picker.is_plain:
                room.place(row, picker.columns)
            else:
                given = room.place_specially(row, picker.columns, picker.spread)
                if given:
                    devices[index] = given
        return rows, devices


class _Picker:
    """The rows for one class, best first, while other classes' tasks are placed too.

    The heap holds (key, row, stamp): the row's key when it had been placed on `stamp` times.
    Rows that are not in it have a (key, row) above `_limit`, or do not fit.
    """

    __slots__ = (
        "_asked_at",
        "_demand",
        "_device_columns",
        "_eligible",
        "_expected",
        "_few",
        "_heap",
        "_limit",
        "_room",
        "_strategy",
        "columns",
        "is_plain",
        "spread",
    )

    def __init__(
        self,
        strategy: ConstructiveStrategy,
        room: Room,
        demand: Demand,
        eligible: BoolArray,
        expected: int,
        spread: tuple[Spread, ...],
    ) -> None:
        """`expected`: how many tasks of the class there are in the batch."""
        self.spread = spread
        self._strategy, self._room = strategy, room
        self._demand = demand
        self._eligible = np.zeros_like(eligible) if demand.missing else eligible
        self._expected = expected
        self.columns = demand.columns
        self._device_columns = [(k, a) for k, a in demand.columns if k in room.devices]
        self.is_plain = not (spread or self._device_columns)
        self._few = eligible.shape[0] <= FEW_ROWS
        self._heap: list[_Entry] = []
        self._limit = _NOT_SCANNED
        self._asked_at = 0

    def pick(self) -> int:
        """The row of least (key, row) that fits now; -1 when none does."""
        self._expected -= 1
        if not self._heap and self._limit is _NO_LIMIT:
            return -1  # what does not fit once does not fit later in the same plan
        room = self._room
        since, self._asked_at = self._asked_at, len(room.placed)
        # So much has changed that most candidates are spoiled, and will be by the next time.
        crowded = self._asked_at - since > FEW_ROWS and not self._few
        if self._limit is _NOT_SCANNED:
            self._scan(best_only=self._expected == 0)
        elif not self._strategy.only_worsens:
            if crowded:
                self._scan(best_only=True)
            else:
                self._catch_up(room.placed[since:])
        stamps = room.stamps
        corrections = 0
        while True:
            heap = self._heap
            while heap and heap[0] <= self._limit:
                _, row, stamp = heap[0]
                now = stamps.get(row, 0)
                if stamp == now:
                    return row
                corrections += 1
                if corrections > FEW_ROWS and not self._few:
                    break
                key = self._fresh_key(row) if self._strategy.only_worsens else None
                if key is None:
                    heappop(heap)
                else:
                    heapreplace(heap, (key, row, now))
            if not heap and self._limit is _NO_LIMIT:
                return -1
            self._scan(best_only=crowded or self._expected == 0)
            corrections = 0

    def _fresh_key(self, row: int) -> float | None:
        """None when the row does not fit any more."""
        free, capacity, health = self._room.row(row)
        for column, amount in self.columns:
            if free[column] < amount:
                return None
        if not (self.is_plain or self._fits_specially(row)):
            return None
        return self._strategy.row_key(row, free, capacity, health, self._demand)

    def _fits_specially(self, row: int) -> bool:
        devices = self._room.devices
        for column, amount in self._device_columns:
            if not devices[column].fits(row, amount):
                return False
        return self._room.admits(row, self.spread)

    def _catch_up(self, placed: list[int]) -> None:
        """Enter the rows that were placed on since; their old entries are told by their stamps."""
        for row in set(placed):
            key = self._fresh_key(row) if self._eligible[row] else None
            if key is not None:
                heappush(self._heap, (key, row, self._room.stamps[row]))

    def _scan(self, best_only: bool) -> None:
        if self._few:
            self._scan_few()
        else:
            self._scan_many(best_only)

    def _scan_few(self) -> None:
        heap: list[_Entry] = []
        stamps = self._room.stamps
        for row, eligible in enumerate(self._eligible.tolist()):
            key = self._fresh_key(row) if eligible else None
            if key is not None:
                heap.append((key, row, stamps.get(row, 0)))
        heapify(heap)
        self._heap, self._limit = heap, _NO_LIMIT

    def _scan_many(self, best_only: bool) -> None:
        free = self._room.array()
        fits = self._eligible.copy()
        for column, amount in self.columns:
            fits &= free[:, column] >= amount
        for column, amount in self._device_columns:
            fits &= self._room.devices[column].fitting(amount)
        for spread in self.spread:
            for row, count in self._room.crowd(spread.group).items():
                fits[row] &= count < spread.most
        keys = self._strategy.scan_keys(self._room.snapshot, free, self._demand)
        if best_only:
            self._keep_best(keys, fits)
        else:
            self._keep_some(keys, fits, self._expected + 1 + _SPARE_CANDIDATES)

    def _keep_best(self, keys: FloatArray | IntArray, fits: BoolArray) -> None:
        row = int(np.where(fits, keys, _greatest(keys)).argmin())
        if fits[row]:
            self._heap = [(keys.item(row), row, self._room.stamps.get(row, 0))]
            self._limit = self._heap[0]
        else:
            self._heap, self._limit = [], _NO_LIMIT

    def _keep_some(self, keys: FloatArray | IntArray, fits: BoolArray, count: int) -> None:
        rows, all_kept = _best_rows(keys, fits, count)
        stamps = self._room.stamps
        row_list = rows.tolist()
        kept_keys = keys[rows].tolist()
        self._limit = _NO_LIMIT
        if row_list and not all_kept:
            self._limit = (kept_keys[-1], row_list[-1], _ANY_STAMP)
        kept_stamps = [stamps.get(row, 0) for row in row_list]
        self._heap = list(zip(kept_keys, row_list, kept_stamps, strict=True))
        heapify(self._heap)


def _classes_of_unplaced(tasks: TaskBatch, placed: list[int] | Int32Array) -> dict[int, int]:
    """Class ids by index of the tasks that found no row; most often there are none."""
    if isinstance(placed, list):
        if -1 not in placed:
            return {}
        placed = np.array(placed, np.int32)
    unplaced = np.flatnonzero(placed < 0)
    return dict(zip(unplaced.tolist(), tasks.class_id[unplaced].tolist(), strict=True))


def _greatest(keys: FloatArray | IntArray) -> float:
    return math.inf if keys.dtype.kind == "f" else int(np.iinfo(np.int64).max)


def _best_rows(
    keys: FloatArray | IntArray, fits: BoolArray, count: int
) -> tuple[NDArray[np.intp], bool]:
    """The `count` rows of least (key, row) among those that fit, the greatest of them last.

    Also whether these are all that fit.
    """
    rows = np.flatnonzero(fits)
    if rows.shape[0] <= count:
        return rows, True
    candidates = keys[rows]
    greatest = np.partition(candidates, count - 1)[count - 1]
    below = np.flatnonzero(candidates < greatest)
    equal = np.flatnonzero(candidates == greatest)[: count - below.shape[0]]
    return rows[np.concatenate([below, equal])], False
