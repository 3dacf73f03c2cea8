"""When a waiting task is expected to start, from how long what runs and waits before it takes.

A rehearsal in virtual time over the agents that may take the task: what runs there ends when its
run time, predicted or else declared, is over; what waits before the task takes the first room that
it fits. Which device is free, spreads, ageing of priorities and what will be submitted later are
left out. Run times that nobody knows are said, and such tasks are taken never to end.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from muster.domain.ids import AgentId
from muster.domain.task import Lifetime
from muster_scheduler.core.foretelling import elapsed_s, expected_run_s
from muster_scheduler.core.records import Now, OpenTask
from muster_scheduler.core.state import ClusterState
from muster_scheduler.placement.classes import Demand
from muster_scheduler.placement.explain import why_not_meant
from muster_scheduler.placement.snapshot import Snapshot

# Together they bound the rehearsal to some tens of milliseconds, beyond it nothing is foretold.
MAX_RUNNING = 5_000
MAX_AHEAD = 1_000
MAX_LOOKS = 20_000
# Skills of which the model is asked; the others count as declared.
_MAX_ASKED = 32


@dataclass(frozen=True, slots=True)
class ExpectedStart:
    """`in_s` is None where it is not known, and `why` then says why; else `why` may qualify it."""

    in_s: float | None
    why: str = ""


_Columns: TypeAlias = tuple[tuple[int, int], ...]


def expected_start(state: ClusterState, task: OpenTask, now: Now) -> ExpectedStart:
    """Of a task that stands in the queue."""
    snapshot = state.table.view()
    wanted = state.classes.demand(task.plain_class_id, snapshot)
    rows = np.flatnonzero(state.classes.eligible(task.plain_class_id, snapshot))
    large = np.full(rows.shape, not wanted.missing)
    for column, amount in wanted.columns:
        large &= snapshot.capacity[rows, column] >= amount
    rows = rows[large]
    if not rows.size:
        return ExpectedStart(None, _nowhere(state, task, snapshot, wanted))
    at = {row: index for index, row in enumerate(rows.tolist())}
    ends = _ends(state, snapshot, at, now)
    if ends is None:
        return ExpectedStart(None, f"more than {MAX_RUNNING} tasks run where it could go")
    ahead = _ahead(state, task, now)
    if ahead is None:
        return ExpectedStart(None, f"more than {MAX_AHEAD} tasks wait before it")
    rehearsal = _Rehearsal(state, snapshot, at)
    for end_s, row, demand in ends:
        if math.isfinite(end_s):
            rehearsal.will_free(end_s, row, demand)
    unknown = sum(1 for end_s, _, _ in ends if not math.isfinite(end_s))
    run_s = _RunTimes(state, snapshot.agent_ids[rows[0]])
    for before in ahead:
        seconds = run_s.of(before)
        unknown += not math.isfinite(seconds)
        rehearsal.line_up(before, seconds)
    rehearsal.line_up(task, 0.0, is_last=True)
    start_s = rehearsal.start_s()
    if start_s is not None and math.isfinite(start_s):
        why = f"if {_tasks(unknown)} of unknown length take no longer" if unknown else ""
        return ExpectedStart(start_s, why if start_s else "")
    if rehearsal.is_exhausted:
        return ExpectedStart(None, "too many different tasks wait before it")
    if unknown:
        return ExpectedStart(None, f"it is not known how long {_tasks(unknown)} before it will run")
    return ExpectedStart(None, "what runs will not make enough room")


def _nowhere(state: ClusterState, task: OpenTask, snapshot: Snapshot, wanted: Demand) -> str:
    """Why no agent that gets work could ever take it: those that could get none, or there are
    none. Looks at every agent."""
    task_class = state.classes[task.plain_class_id]
    barred: Counter[str] = Counter()
    for row in np.flatnonzero(snapshot.alive & ~snapshot.placeable).tolist():
        large = all(snapshot.capacity[row, column] >= least for column, least in wanted.columns)
        meant = why_not_meant(snapshot, task_class, row) is None
        if large and meant and not wanted.missing:
            barred[snapshot.why_not[row]] += 1
    if not barred:
        return "no agent could take it, even one without work"
    reasons = ", ".join(f"{count} × {why}" for why, count in barred.items())
    return f"the agents that could take it get no work: {reasons}"


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _ends(
    state: ClusterState, snapshot: Snapshot, at: dict[int, int], now: Now
) -> list[tuple[float, int, _Columns]] | None:
    """Of each task on the rows: seconds until it ends, its place in `at`, what it holds."""
    held: list[OpenTask] = []
    for row in at:
        agent = state.agents.get(AgentId(snapshot.agent_ids[row]))
        held.extend(agent.tasks.values() if agent is not None else ())
        if len(held) > MAX_RUNNING:
            return None
    predicted = np.array([_predicted_s(task) for task in held])
    elapsed = np.array([elapsed_s(task, now) for task in held])
    left = np.full(len(held), np.inf)
    known = np.isfinite(predicted)
    if known.any():
        left[known] = state.foresight.remaining_s(predicted[known], elapsed[known])
    columns = {
        class_id: state.classes.demand(class_id, snapshot).columns
        for class_id in {task.plain_class_id for task in held}
    }
    return [
        (seconds, at[task.row], columns[task.plain_class_id])
        for task, seconds in zip(held, left.tolist(), strict=True)
        if task.row in at
    ]


def _predicted_s(task: OpenTask) -> float:
    """Infinite where nothing is known, and for what runs until it is cancelled."""
    if task.spec.lifetime is Lifetime.SERVICE:
        return math.inf
    return task.predicted_s or task.spec.estimate_ms / 1000 or math.inf


class _RunTimes:
    """Run times of tasks that wait: as the model has them on one agent, else as declared."""

    def __init__(self, state: ClusterState, agent: str) -> None:
        self._state, self._agent = state, AgentId(agent)
        self._asked: dict[tuple[str, int, int], float] = {}

    def of(self, task: OpenTask) -> float:
        spec = task.spec
        if spec.lifetime is Lifetime.SERVICE:
            return math.inf
        declared = spec.estimate_ms / 1000 or math.inf
        if self._state.foresight.model is None:
            return declared
        key = (spec.skill, spec.estimate_ms, len(spec.input_json))
        found = self._asked.get(key)
        if found is None:
            if len(self._asked) >= _MAX_ASKED:
                return declared
            learned = expected_run_s(self._state, task, self._agent)
            found = self._asked[key] = declared if learned is None else learned[0]
        return found


def _ahead(state: ClusterState, task: OpenTask, now: Now) -> Sequence[OpenTask] | None:
    """Those that would be offered before the task, in order; None beyond MAX_AHEAD."""
    found: list[OpenTask] = []
    for before in state.queue.before(task, state.held, now.clock_ms):
        if len(found) == MAX_AHEAD:
            return None
        found.append(before)
    return found


class _Rehearsal:
    """Virtual time: rooms are freed and given to what waits, in order, wherever it fits."""

    def __init__(self, state: ClusterState, snapshot: Snapshot, at: dict[int, int]) -> None:
        self._state, self._snapshot = state, snapshot
        rows = list(at)
        self._rows = np.array(rows)
        self._room = snapshot.free[rows]
        self._free: list[list[int]] = self._room.tolist()
        self._events: list[tuple[float, int, _Columns]] = []
        # By class, in the order of the queue: (place in it, what it takes, run time; infinite where
        # that is not known).
        self._lines: dict[int, deque[tuple[int, _Columns, float]]] = {}
        self._may: dict[int, list[bool]] = {}
        self._count = 0
        self._last = -1
        self._looks = 0
        self.is_exhausted = False

    def will_free(self, at_s: float, row: int, demand: _Columns) -> None:
        heapq.heappush(self._events, (at_s, row, demand))

    def line_up(self, task: OpenTask, run_s: float, *, is_last: bool = False) -> None:
        class_id = task.plain_class_id
        if class_id not in self._lines:
            self._lines[class_id] = deque()
            eligible = self._state.classes.eligible(class_id, self._snapshot)
            self._may[class_id] = eligible[self._rows].tolist()
        demand = self._state.classes.demand(class_id, self._snapshot)
        if demand.missing:
            return
        self._lines[class_id].append((self._count, demand.columns, run_s))
        if is_last:
            self._last = self._count
        self._count += 1

    def start_s(self) -> float | None:
        """Of the last in line; None where it finds no room."""
        if self._fill(self._with_room(), 0.0):
            return 0.0
        while self._events and not self.is_exhausted:
            now_s = self._events[0][0]
            freed = set()
            while self._events and self._events[0][0] <= now_s:
                _, row, demand = heapq.heappop(self._events)
                for column, amount in demand:
                    self._free[row][column] += amount
                freed.add(row)
            if self._fill(sorted(freed), now_s):
                return now_s
        return None

    def _with_room(self) -> list[int]:
        """The rows where the first of some line fits at once: few, as long as tasks wait."""
        some = np.zeros(len(self._free), np.bool_)
        for class_id, line in self._lines.items():
            if line:
                fitting = np.array(self._may[class_id])
                for column, amount in line[0][1]:
                    fitting &= self._room[:, column] >= amount
                some |= fitting
        found: list[int] = np.flatnonzero(some).tolist()
        return found

    def _fill(self, rows: Iterable[int], now_s: float) -> bool:
        """Gives the rows' room away; True once the last in line has some."""
        for row in rows:
            while (class_id := self._next_for(row)) is not None:
                place, demand, run_s = self._lines[class_id].popleft()
                if place == self._last:
                    return True
                for column, amount in demand:
                    self._free[row][column] -= amount
                if math.isfinite(run_s):
                    self.will_free(now_s + run_s, row, demand)
        return False

    def _next_for(self, row: int) -> int | None:
        """The class whose first task is the earliest of those that fit on the row."""
        free = self._free[row]
        best: tuple[int, int] | None = None
        for class_id, line in self._lines.items():
            self._looks += 1
            if not line or not self._may[class_id][row]:
                continue
            place, demand, _ = line[0]
            if best is not None and place > best[0]:
                continue
            if all(free[column] >= amount for column, amount in demand):
                best = place, class_id
        if self._looks > MAX_LOOKS:
            self.is_exhausted = True
            return None
        return None if best is None else best[1]
