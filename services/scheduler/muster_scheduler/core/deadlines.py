"""When a task's next moment comes, in cluster milliseconds."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from enum import Enum

from muster.domain.ids import TaskId
from muster.domain.task import TaskSpec, TaskStatus
from muster_scheduler.core.records import OpenTask

# The agent ends an attempt at its timeout by itself; the leader steps in when it did not.
TIMEOUT_GRACE_MS = 5_000
# A `stop` task is killed by its agent within 12 s of the last answered beat.
STOP_GIVEN_AWAY_MS = 13_000
# A task has at most five moments at once. Those of tasks that have ended are shed once there are
# twice as many: a deadline of a day must not keep a task in memory for a day.
_KEPT_PER_TASK = 8
_KEPT_AT_LEAST = 1_000


class Moment(Enum):
    """What is due."""

    RETRY = "its pause is over"
    START = "it had to be started by now"
    TOTAL = "it had to end by now"
    TIMEOUT = "its attempt had to end by now"
    PROGRESS = "its attempt had to show progress by now"


# Moments of an attempt; when it is over they mean nothing.
_OF_ATTEMPTS = frozenset({Moment.TIMEOUT, Moment.PROGRESS})


class Deadlines:
    """A heap of moments; those that no longer apply are dropped by whoever pops them."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Moment, OpenTask, int]] = []
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, at_clock_ms: int, moment: Moment, task: OpenTask) -> None:
        """The moment is for the task's present attempt."""
        self._pushed += 1
        entry = (at_clock_ms, self._pushed, moment, task, task.status.attempt)
        heapq.heappush(self._heap, entry)

    def add_created(self, task: OpenTask) -> None:
        """The moments that count from the task's creation."""
        spec, created = task.spec, task.status.created_clock_ms
        if spec.start_deadline_ms:
            self.add(created + spec.start_deadline_ms, Moment.START, task)
        if spec.total_deadline_ms:
            self.add(created + spec.total_deadline_ms, Moment.TOTAL, task)

    def due(self, clock_ms: int) -> list[tuple[Moment, OpenTask, int]]:
        """Takes out all that is due: (what, task, attempt at which it was noted)."""
        out = []
        while self._heap and self._heap[0][0] <= clock_ms:
            _, _, moment, task, attempt = heapq.heappop(self._heap)
            out.append((moment, task, attempt))
        return out

    def shed(self, open_tasks: Mapping[TaskId, OpenTask]) -> None:
        """Drops moments of tasks and attempts that are over, when they have become many."""
        if len(self._heap) <= _KEPT_AT_LEAST + _KEPT_PER_TASK * len(open_tasks):
            return
        self._heap = [
            entry
            for entry in self._heap
            if open_tasks.get(entry[3].id) is entry[3]
            and (entry[2] not in _OF_ATTEMPTS or entry[4] == entry[3].status.attempt)
        ]
        heapq.heapify(self._heap)


def timeout_for(spec: TaskSpec, status: TaskStatus, clock_ms: int) -> int:
    """Milliseconds that an attempt assigned now may run: its timeout or what the total leaves.

    0 = no limit.
    """
    if not spec.total_deadline_ms:
        return spec.timeout_ms
    left = max(1, status.created_clock_ms + spec.total_deadline_ms - clock_ms)
    return min(spec.timeout_ms, left) if spec.timeout_ms else left
