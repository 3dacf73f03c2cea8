"""Fastest first: each task to the agent on which it is expected to end soonest."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from muster_scheduler.placement.classes import TaskBatch
from muster_scheduler.placement.devices import WHOLE, Devices, device_fits, pick_devices
from muster_scheduler.placement.explain import LazyReasons
from muster_scheduler.placement.objective import evaluate
from muster_scheduler.placement.plan import DEFAULT_STRATEGY, Plan, Policy
from muster_scheduler.placement.snapshot import BoolArray, FloatArray, Group, IntArray, Snapshot
from muster_scheduler.placement.strategy import get, names, register

_TASKS_PER_STOP = 64
# Predictions that differ by less than this are equal: the emptier agent gets the task.
_SAME_TIME = 1e-6
_IMPROVER = "search"
# Who waits for a fast agent delays those who come after, so it must end this much sooner.
WORTH_WAITING = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class ForetoldBatch(TaskBatch):
    """A batch of which it is also known when what runs will end, so that waiting can be the best.

    release_s  float64 [M, R], seconds from now until the agent's running tasks end, rising along
               a row, inf behind the last; one task's end is taken to make room for one more
    """

    release_s: FloatArray | None = None


@register("learned")
class Learned:
    """Each task in turn to the feasible agent of least t_ij, as `response_s` of the batch has it.

    Among agents of equal t_ij the one with the most free share, then the lower row. `response_s`
    comes from `muster_scheduler.learning`, or from whoever else knows it; without it the default
    strategy places. With steps to spend `search` improves on the plan, and the better one counts.

    A ForetoldBatch's tasks rather wait for a fast agent than begin at once on a slow one, when
    they so end sooner: the wait until a full agent has room is added to its t_ij, and a task whose
    least t_ij is a full agent's stays unplaced this time (list scheduling on unrelated machines
    by earliest completion; Ibarra and Kim 1977). No agent's place is promised: next time the
    question is asked anew, with the tasks before it served first.
    """

    name = "learned"

    def plan(
        self,
        snapshot: Snapshot,
        tasks: TaskBatch,
        policy: Policy,
        now_s: float,
        rng: Generator,
        stop: Callable[[], bool],
        max_steps: int,
    ) -> Plan:
        """See Strategy; `rng` is for `search`."""
        assert snapshot.is_current(), "the agent table changed after this view was taken"
        if tasks.response_s is None:
            plan = get(DEFAULT_STRATEGY).plan(snapshot, tasks, policy, now_s, rng, stop, 0)
            plan = replace(plan, strategy=self.name)
        else:
            plan = _fastest_first(self.name, snapshot, tasks, stop)
        waits = isinstance(tasks, ForetoldBatch) and tasks.release_s is not None
        if not waits and max_steps > 0 and len(tasks) > 1 and _IMPROVER in names():
            other = get(_IMPROVER).plan(snapshot, tasks, policy, now_s, rng, stop, max_steps)
            ours = evaluate(snapshot, tasks, plan.assignment, policy).order(policy)
            if evaluate(snapshot, tasks, other.assignment, policy).order(policy) < ours:
                plan = replace(other, strategy=self.name)
        if not policy.measured:
            return plan
        score = evaluate(snapshot, tasks, plan.assignment, policy)
        return replace(plan, T=score.T, U=score.U, B=score.B, J=score.J)


class _Room:
    """What is free while one plan grows."""

    def __init__(self, snapshot: Snapshot, tasks: TaskBatch) -> None:
        self.free: IntArray = snapshot.free.copy(order="K")
        self.devices = {k: grid.copy() for k, grid in snapshot.device_free.items()}
        self._snapshot, self._tasks = snapshot, tasks
        self._fits: dict[int, BoolArray] = {}
        self._crowds: dict[Group, dict[int, int]] = {}

    def _crowd(self, group: Group) -> dict[int, int]:
        """How many tasks of the group each row holds."""
        return self._crowds.setdefault(group, dict(self._snapshot.crowds.get(group, {})))

    def fits(self, index: int) -> BoolArray:
        """bool [M], read only; remembered per class."""
        class_id = int(self._tasks.class_id[index])
        by_agent = self._tasks.demand_by_agent
        known = self._fits.get(class_id)
        if known is None:
            known = self._tasks.classes.eligible(class_id, self._snapshot).copy()
            known &= self._has_room(class_id, slice(None))
            self._fits[class_id] = known
        if by_agent is None:
            return known
        fits: BoolArray = known & (self.free >= by_agent[index]).all(axis=1)
        return fits

    def _has_room(self, class_id: int, rows: slice) -> BoolArray:
        demand = self._tasks.classes.demand(class_id, self._snapshot)
        room = np.full(self.free[rows].shape[0], not demand.missing)
        for column, amount in demand.columns:
            if self._tasks.demand_by_agent is None:
                room &= self.free[rows, column] >= amount
            if column in self.devices:
                room &= device_fits(self.devices[column][rows], amount)
        first = rows.start or 0
        for spread in self._tasks.classes.spread(class_id):
            for row, count in self._crowd(spread.group).items():
                if first <= row < first + room.shape[0]:
                    room[row - first] &= count < spread.most
        return room

    def shares(self, rows: IntArray) -> FloatArray:
        """float64 [len(rows)], the least free share of each row."""
        shares: FloatArray = (self.free[rows] / self._snapshot.divisor[rows]).min(
            axis=1, initial=1.0, where=self._snapshot.capacity[rows] > 0
        )
        return shares

    def place(self, index: int, row: int) -> Devices:
        class_id = int(self._tasks.class_id[index])
        by_agent = self._tasks.demand_by_agent
        taken: dict[str, tuple[int, ...]] = {}
        if by_agent is not None:
            self.free[row] -= by_agent[index, row]
        for column, amount in self._tasks.classes.demand(class_id, self._snapshot).columns:
            if by_agent is None:
                self.free[row, column] -= amount
            if column in self.devices:
                picked = pick_devices(self.devices[column][row].tolist(), amount)
                assert picked is not None, "a task was placed where its devices do not fit"
                self.devices[column][row, list(picked)] -= min(amount, WHOLE)
                taken[self._snapshot.names[column]] = picked
        for spread in self._tasks.classes.spread(class_id):
            crowd = self._crowd(spread.group)
            crowd[row] = crowd.get(row, 0) + 1
        for other, fits in self._fits.items():
            fits[row] = fits[row] and self._has_room(other, slice(row, row + 1))[0]
        return taken


class _Queues:
    """When each agent has room for one more, while tasks of the plan line up for it."""

    def __init__(self, release_s: FloatArray) -> None:
        self._release_s = release_s
        # float64 [M], seconds from now; inf where nothing runs that could make room.
        self.earliest: FloatArray = release_s[:, 0].copy()
        self._heaps: dict[int, list[float]] = {}

    def join(self, row: int, run_s: float) -> None:
        heap = self._heaps.get(row)
        if heap is None:
            heap = self._heaps[row] = self._release_s[row].tolist()
        heapq.heapreplace(heap, heap[0] + run_s)
        self.earliest[row] = heap[0]

    def waits(self, times: FloatArray, now: float) -> bool:
        """Lines the task up where it ends before `now`, what an agent with room offers.

        `times` float64 [M], inf where the task cannot go.
        """
        ends = self.earliest + times
        best = int(ends.argmin())
        if not ends[best] < WORTH_WAITING * now:
            return False
        self.join(best, float(times[best]))
        return True


def _fastest_first(
    name: str, snapshot: Snapshot, tasks: TaskBatch, stop: Callable[[], bool]
) -> Plan:
    times = tasks.response_s
    assert times is not None, "without response times there is no fastest"
    room = _Room(snapshot, tasks)
    assignment = np.full(len(tasks), -1, np.int32)
    devices: dict[int, Devices] = {}
    unplaced: dict[int, int] = {}
    queues: _Queues | None = None
    if isinstance(tasks, ForetoldBatch) and tasks.release_s is not None and tasks.release_s.size:
        queues = _Queues(tasks.release_s)
    considered = 0
    for index in range(len(tasks)):
        if index and index % _TASKS_PER_STOP == 0 and stop():
            break
        considered += 1
        class_id = int(tasks.class_id[index])
        row = _fastest(room, index, times[index])
        if row >= 0 and queues is not None:
            here = np.where(tasks.classes.eligible(class_id, snapshot), times[index], np.inf)
            if queues.waits(here, times.item(index, row)):
                row = -1
        if row < 0:
            unplaced[index] = class_id
            continue
        assignment[index] = row
        taken = room.place(index, row)
        if taken:
            devices[index] = taken
    reasons = LazyReasons(snapshot, tasks.classes, unplaced, lambda: room.free)
    return Plan(assignment, reasons, name, considered, devices=devices)


def _fastest(room: _Room, index: int, times: FloatArray) -> int:
    rows = np.flatnonzero(room.fits(index))
    if not rows.size:
        return -1
    here = times[rows]
    equal = rows[here <= here.min() * (1 + _SAME_TIME)]
    if equal.size > 1:
        return int(equal[room.shares(equal).argmax()])
    return int(equal[0])
