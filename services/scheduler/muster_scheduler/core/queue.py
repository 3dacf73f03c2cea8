"""The order in which waiting tasks are offered to placement.

Priority with ageing first, then the tenant that holds least, then age. Tasks that are alike in
tenant, priority and class wait in one line: when its first finds no place, none of it does, so a
million equal tasks cost no more than one.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import msgspec

from muster.domain.ids import TaskId, TenantId
from muster_scheduler.core.records import OpenTask

# Waiting this long is worth one step of priority: the lowest task passes the highest newcomer
# after 100 times this (about 17 minutes), so nothing starves.
AGEING_MS = 10_000

LineKey = tuple[TenantId, int, int]


class Line:
    """Tasks of one tenant, priority and class, oldest (lowest id) first.

    Most come in order and stand in `_row`; those that come back after younger ones have lined up
    stand in the heap `_late`. Tasks taken out in the middle stay as gaps until they are met.
    `starved_at` is the agent table's version at which no agent at all was eligible.
    """

    __slots__ = ("_added", "_late", "_row", "count", "key", "starved_at")

    def __init__(self, key: LineKey) -> None:
        self.key = key
        self.count = 0
        self.starved_at = -1
        self._row: deque[OpenTask] = deque()
        self._late: list[tuple[TaskId, int, OpenTask]] = []
        self._added = 0

    def __iter__(self) -> Iterator[OpenTask]:
        """Those that wait, in no order."""
        yield from (t for t in self._row if t.queued)
        yield from (t for _, _, t in self._late if t.queued)

    def head(self) -> OpenTask | None:
        """The oldest task that waits."""
        row, late = self._row, self._late
        while row and not row[0].queued:
            row.popleft()
        while late and not late[0][2].queued:
            heapq.heappop(late)
        if late and not (row and row[0].id < late[0][0]):
            return late[0][2]
        return row[0] if row else None

    def insert(self, task: OpenTask) -> None:
        """Puts the task where its age belongs."""
        task.queued = True
        self.count += 1
        row = self._row
        if not row or task.id > row[-1].id:
            row.append(task)
        elif task.id < row[0].id:
            row.appendleft(task)
        else:
            self._added += 1
            heapq.heappush(self._late, (task.id, self._added, task))

    def take_head(self) -> OpenTask | None:
        """Takes the oldest task out."""
        task = self.head()
        if task is not None:
            if self._row and self._row[0] is task:
                self._row.popleft()
            else:
                heapq.heappop(self._late)
            task.queued = False
            self.count -= 1
        return task

    def leave_gap(self, task: OpenTask) -> None:
        """Takes out a task from anywhere; a line of gaps is rebuilt."""
        task.queued = False
        self.count -= 1
        if len(self._row) + len(self._late) > 2 * self.count + 16:
            self._row = deque(t for t in self._row if t.queued)
            self._late = [entry for entry in self._late if entry[2].queued]
            heapq.heapify(self._late)


class Candidate(msgspec.Struct, frozen=True, eq=False):
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
        """Puts the task into its line by age. One that was discarded must not come back."""
        assert not task.queued, f"{task!r} is queued twice"
        key = (task.spec.tenant, task.spec.priority, task.class_id)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(key)
        line.insert(task)
        self._count += 1

    def discard(self, task: OpenTask) -> None:
        """Takes the task out, if it is in."""
        if task.queued:
            line = self._lines[(task.spec.tenant, task.spec.priority, task.class_id)]
            line.leave_gap(task)
            self._count -= 1
            self._close_if_empty(line)

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
        heap: list[tuple[int, int, TaskId, int, int, Line]] = []
        # Taken in this call, by tenant: they count as held for those that follow.
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
            _, holds, _, places, class_id, line = heap[0]
            tenant = line.key[0]
            if holds != held.get(tenant, 0) + extra.get(tenant, 0):
                # Its tenant was given places through another line since it was ranked.
                self._rank_again(heap, held, extra, clock_ms)
                continue
            # A line that is alone need not be compared with any other.
            many = min(places, limit - len(out)) if len(heap) == 1 else 1
            for _ in range(many):
                task = line.take_head()
                if task is None:
                    break
                out.append(Candidate(task, class_id, line))
                self._count -= 1
                extra[tenant] = extra.get(tenant, 0) + 1
                places -= 1
            heap[0] = (*heap[0][:3], places, class_id, line)
            if places <= 0 or not line.count:
                heapq.heappop(heap)
            else:
                self._rank_again(heap, held, extra, clock_ms)
            self._close_if_empty(line)
        return out

    def put_back(self, candidates: list[Candidate]) -> None:
        """Returns tasks that found no place to where they stood."""
        for candidate in reversed(candidates):
            line = self._lines.setdefault(candidate.line.key, candidate.line)
            line.insert(candidate.task)
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
                before += sum(1 for t in line if t.id < task.id)
            elif self._rank(head, held, {}, clock_ms) < mine:
                before += line.count
        return before + 1

    def before(
        self, task: OpenTask, held: Mapping[TenantId, int], clock_ms: int
    ) -> Iterator[OpenTask]:
        """The tasks that `position` counts, line by line in about the order of the queue."""
        own = (task.spec.tenant, task.spec.priority, task.class_id)
        mine = self._rank(task, held, {}, clock_ms)
        lines = []
        for line in self._lines.values():
            head = line.head()
            if head is not None:
                rank = self._rank(head, held, {}, clock_ms)
                if line.key == own or rank < mine:
                    lines.append((rank, line))
        for _, line in sorted(lines, key=lambda entry: entry[0]):
            yield from (t for t in line if line.key != own or t.id < task.id)

    def _close_if_empty(self, line: Line) -> None:
        if not line.count:
            self._lines.pop(line.key, None)

    def _rank_again(
        self,
        heap: list[tuple[int, int, TaskId, int, int, Line]],
        held: Mapping[TenantId, int],
        extra: Mapping[TenantId, int],
        clock_ms: int,
    ) -> None:
        *_, places, class_id, line = heap[0]
        head = line.head()
        assert head is not None, "an empty line was asked for its rank"
        rank = self._rank(head, held, extra, clock_ms)
        heapq.heapreplace(heap, (*rank, places, class_id, line))

    def urgency(self, task: OpenTask, clock_ms: int) -> int:
        """The task's priority with what it has gained by waiting."""
        return task.spec.priority + max(0, clock_ms - task.status.created_clock_ms) // AGEING_MS

    def most_urgent(self, clock_ms: int) -> int:
        """The greatest urgency of those that wait; 0 when none does."""
        heads = (line.head() for line in self._lines.values())
        return max((self.urgency(head, clock_ms) for head in heads if head is not None), default=0)

    def _rank(
        self,
        head: OpenTask,
        held: Mapping[TenantId, int],
        extra: Mapping[TenantId, int],
        clock_ms: int,
    ) -> tuple[int, int, TaskId]:
        tenant = head.spec.tenant
        age = max(0, clock_ms - head.status.created_clock_ms) // AGEING_MS
        return (
            -(head.spec.priority + age),
            held.get(tenant, 0) + extra.get(tenant, 0),
            head.id,
        )
