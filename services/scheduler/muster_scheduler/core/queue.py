"""The order in which waiting tasks are offered to placement.

Priority with ageing first, then the tenant that holds least, then age. Tasks that are alike in
tenant, priority and class wait in one line: when its first finds no place, none of it does, so a
million equal tasks cost no more than one.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from muster.domain.ids import TenantId
from muster_scheduler.core.records import OpenTask

# Waiting this long is worth one step of priority: the lowest task passes the highest newcomer
# after 100 times this (about 17 minutes), so nothing starves.
AGEING_MS = 10_000

LineKey = tuple[TenantId, int, int]


class Line:
    """Tasks of one tenant, priority and class, oldest first.

    `starved_at` is the agent table's version at which no agent at all was eligible.
    """

    __slots__ = ("count", "key", "starved_at", "tasks")

    def __init__(self, key: LineKey) -> None:
        self.key = key
        self.tasks: deque[OpenTask] = deque()
        self.count = 0
        self.starved_at = -1

    def head(self) -> OpenTask | None:
        """The oldest task that still waits."""
        tasks = self.tasks
        while tasks and not tasks[0].queued:
            tasks.popleft()
        return tasks[0] if tasks else None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A task taken from the queue to be placed, and the class to place it as."""

    task: OpenTask
    class_id: int
    line: Line


class WaitingQueue:
    """Tasks that wait for a place. A task's `queued` says whether it is in here."""

    def __init__(self) -> None:
        self._lines: dict[LineKey, Line] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def lines(self) -> Iterator[Line]:
        """All lines, in no order."""
        return iter(self._lines.values())

    def add(self, task: OpenTask) -> None:
        """Puts the task into its line by age; a retried task is older than the line's end."""
        assert not task.queued, f"{task!r} is queued twice"
        key = (task.spec.tenant, task.spec.priority, task.class_id)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(key)
        task.queued = True
        head = line.head()
        if head is not None and task.id < head.id:
            line.tasks.appendleft(task)
        else:
            line.tasks.append(task)
        line.count += 1
        self._count += 1

    def discard(self, task: OpenTask) -> None:
        """Takes the task out, if it is in."""
        if task.queued:
            task.queued = False
            line = self._lines[(task.spec.tenant, task.spec.priority, task.class_id)]
            self._left(line)
            # It stays in the deque as a gap, which `head` skips; a line of gaps is rebuilt.
            if len(line.tasks) > 2 * line.count + 16:
                line.tasks = deque(t for t in line.tasks if t.queued)

    def take(
        self,
        room: Callable[[Line], tuple[int, int]],
        held: Mapping[TenantId, int],
        clock_ms: int,
        limit: int,
        blocked: set[LineKey],
    ) -> list[Candidate]:
        """At most `limit` tasks in the order in which they should be placed.

        `room(line)` gives (how many of it can find a place at most, class to place them as).
        `held` counts each tenant's tasks that have a place. Lines in `blocked` are passed over.
        Taken tasks are out of the queue; `put_back` returns those that found no place.
        """
        heap: list[tuple[int, int, str, int, int, Line]] = []
        extra: dict[TenantId, int] = {}
        for line in list(self._lines.values()):
            if line.key in blocked:
                continue
            head = line.head()
            if head is None:
                continue
            places, class_id = room(line)
            if places > 0:
                heap.append((*self._rank(head, held, extra, clock_ms), places, class_id, line))
        heapq.heapify(heap)
        out: list[Candidate] = []
        while heap and len(out) < limit:
            *_, places, class_id, line = heap[0]
            # Alone, or first whatever the others do: the rest of the heap need not be asked.
            many = min(places, limit - len(out)) if len(heap) == 1 else 1
            for _ in range(many):
                task = line.head()
                if task is None:
                    break
                line.tasks.popleft()
                task.queued = False
                self._left(line)
                out.append(Candidate(task, class_id, line))
                tenant = line.key[0]
                extra[tenant] = extra.get(tenant, 0) + 1
                places -= 1
            head = line.head()
            if head is None or places <= 0:
                heapq.heappop(heap)
            else:
                rank = self._rank(head, held, extra, clock_ms)
                heapq.heapreplace(heap, (*rank, places, class_id, line))
        return out

    def put_back(self, candidates: list[Candidate]) -> None:
        """Returns tasks that found no place to where they stood."""
        for candidate in reversed(candidates):
            task = candidate.task
            key = candidate.line.key
            line = self._lines.setdefault(key, candidate.line)
            task.queued = True
            line.tasks.appendleft(task)
            line.count += 1
            self._count += 1

    def position(self, task: OpenTask, held: Mapping[TenantId, int], clock_ms: int) -> int:
        """How many tasks would be offered before this one, plus one; 0 when it does not wait.

        Counts whole lines by their heads, so it is a bound rather than a forecast.
        """
        if not task.queued:
            return 0
        own = (task.spec.tenant, task.spec.priority, task.class_id)
        mine = self._rank(task, held, {}, clock_ms)
        before = 0
        for line in self._lines.values():
            head = line.head()
            if head is None:
                continue
            if line.key == own:
                before += sum(1 for t in line.tasks if t.queued and t.id < task.id)
            elif self._rank(head, held, {}, clock_ms) < mine:
                before += line.count
        return before + 1

    def _left(self, line: Line) -> None:
        line.count -= 1
        self._count -= 1
        if line.count == 0:
            line.tasks.clear()
            self._lines.pop(line.key, None)

    def _rank(
        self,
        head: OpenTask,
        held: Mapping[TenantId, int],
        extra: Mapping[TenantId, int],
        clock_ms: int,
    ) -> tuple[int, int, str]:
        tenant = head.spec.tenant
        age = max(0, clock_ms - head.status.created_clock_ms) // AGEING_MS
        return (
            -(head.spec.priority + age),
            held.get(tenant, 0) + extra.get(tenant, 0),
            head.id,
        )
