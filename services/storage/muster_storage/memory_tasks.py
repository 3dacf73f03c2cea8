"""Tasks, requests and events in memory: what the scripts do, in Python."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from muster.domain.errors import StaleTerm
from muster.domain.ids import PREFIX_CHARS, TenantId, request_prefix
from muster_storage.records import (
    APPLIED,
    ASSIGNED,
    FIRST_ENDED,
    LAST_STATE,
    MAX_PAGE_BYTES,
    MISSING,
    PENDING,
    RUNNING,
    Change,
    Created,
    Creation,
    Expired,
    LogBatch,
    LogEntry,
    Notice,
    OldRequest,
    Page,
    Removal,
    Reservation,
    Row,
    TaskFilter,
    Verdict,
    VerdictCode,
)
from muster_storage.wire import number_field

_CREATED_CLOCK_FIELD = 9


@dataclass(slots=True)
class _Task:
    state: int
    attempt: int
    agent: str
    skill: str
    labels: frozenset[str]
    spec: bytes
    status: bytes
    outcome: bytes = b""
    progress: bytes = b""
    output_blob: str = ""

    @property
    def row(self) -> Row:
        return Row(self.spec, self.status, self.outcome, self.progress)


@dataclass(slots=True)
class _Request:
    body_hash: bytes
    first_ms: int
    look_at_clock_ms: int
    # Tasks of it have been removed.
    gone: bool = False


@dataclass(slots=True)
class HeldBlob:
    pinned: bool
    idle_since_clock_ms: int | None


@dataclass(slots=True)
class Memory:
    """All data of a memory store; its parts share it as the scripts share Redis."""

    events_kept: int
    term: int = 0
    clock_ms: int = 0
    tasks: dict[str, dict[str, _Task]] = field(default_factory=dict)
    ids: dict[str, list[str]] = field(default_factory=dict)
    ended: dict[tuple[str, str], int] = field(default_factory=dict)
    requests: dict[tuple[str, str], _Request] = field(default_factory=dict)
    # By what the ids of its tasks begin with.
    request_of: dict[str, _Request] = field(default_factory=dict)
    events: deque[LogEntry] = field(default_factory=deque)
    seq: int = 0
    written: asyncio.Event = field(default_factory=asyncio.Event)
    blobs: dict[tuple[str, str], HeldBlob] = field(default_factory=dict)
    holders: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    dying: dict[tuple[str, str], int] = field(default_factory=dict)
    logs: dict[tuple[str, str], dict[int, tuple[str, bytes, int]]] = field(default_factory=dict)

    def task(self, tenant: str, ident: str) -> _Task | None:
        return self.tasks.get(tenant, {}).get(ident)

    def check_term(self, term: int) -> None:
        if term != self.term:
            raise StaleTerm(term, self.term)

    def emit(self, head: str, event: bytes) -> None:
        self.seq += 1
        self.events.append(LogEntry(self.seq, head.encode(), event))
        while len(self.events) > self.events_kept:
            self.events.popleft()
        self.written.set()

    def hold(self, tenant: str, sha256: str, holder: str) -> None:
        self.holders.setdefault((tenant, sha256), set()).add(holder)
        blob = self.blobs.get((tenant, sha256))
        if blob is not None:
            blob.idle_since_clock_ms = None

    def release(self, tenant: str, sha256: str, holder: str) -> None:
        name = (tenant, sha256)
        self.holders.get(name, set()).discard(holder)
        blob = self.blobs.get(name)
        if not self.holders.get(name) and blob is not None and not blob.pinned:
            blob.idle_since_clock_ms = self.clock_ms


class MemoryTasks:
    """TaskStore and EventLog."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def create(self, term: int, tasks: Sequence[Creation]) -> Created:
        memory = self._memory
        if term and tasks:
            memory.check_term(term)
        standing = []
        for new in tasks:
            present = memory.task(new.tenant, new.id)
            standing.append(present.status if present is not None else b"")
            if present is not None:
                continue
            status = new.status
            if new.stamp:
                status += number_field(_CREATED_CLOCK_FIELD, memory.clock_ms)
            memory.tasks.setdefault(new.tenant, {})[new.id] = _Task(
                state=new.state,
                attempt=new.attempt,
                agent=new.agent,
                skill=new.skill,
                labels=frozenset(new.labels),
                spec=new.spec,
                status=status,
            )
            insort(memory.ids.setdefault(new.tenant, []), new.id)
            memory.emit(new.event_head, new.event)
        return Created(memory.clock_ms, standing)

    async def apply(self, term: int, changes: Sequence[Change]) -> list[Verdict]:
        if changes:
            self._memory.check_term(term)
        return [self._apply(change) for change in changes]

    def _apply(self, change: Change) -> Verdict:
        memory = self._memory
        task = memory.task(change.tenant, change.id)
        if task is None:
            return MISSING
        if (task.state, task.attempt) != (change.expect_state, change.expect_attempt):
            if task.status == change.status:
                return APPLIED
            return Verdict(VerdictCode.STALE, task.status)
        if change.outcome:
            task.outcome = change.outcome
            if task.output_blob != change.output_blob:
                holder = f"o:{change.id}"
                if task.output_blob:
                    memory.release(change.tenant, task.output_blob, holder)
                if change.output_blob:
                    memory.hold(change.tenant, change.output_blob, holder)
                task.output_blob = change.output_blob
        if change.attempt != task.attempt:
            task.progress = b""
        if change.state != task.state and change.state >= FIRST_ENDED:
            memory.ended[change.tenant, change.id] = memory.clock_ms
        task.state, task.attempt, task.agent = change.state, change.attempt, change.agent
        task.status = change.status
        memory.emit(change.event_head, change.event)
        return APPLIED

    async def publish(self, term: int, notices: Sequence[Notice]) -> int:
        memory = self._memory
        if term and notices:
            memory.check_term(term)
        taken = 0
        for notice in notices:
            if notice.task_id:
                task = memory.task(notice.tenant, notice.task_id)
                if (
                    task is None
                    or task.state not in (ASSIGNED, RUNNING)
                    or task.attempt != notice.attempt
                ):
                    continue
                task.progress = notice.progress or task.progress
            memory.emit(notice.event_head, notice.event)
            taken += 1
        return taken

    async def reserve(self, tenant: str, key: str, body_hash: bytes, now_ms: int) -> Reservation:
        found = self._memory.requests.get((tenant, key))
        if found is not None:
            conflict = found.body_hash != body_hash
            gone = found.gone and not conflict
            return Reservation(found.first_ms, first=False, conflict=conflict, gone=gone)
        request = _Request(body_hash, now_ms, self._memory.clock_ms)
        self._memory.requests[tenant, key] = request
        self._memory.request_of[request_prefix(TenantId(tenant), key, now_ms)] = request
        return Reservation(now_ms, first=True, conflict=False, gone=False)

    async def get(self, tenant: str, ids: Sequence[str], most_bytes: int) -> list[Row | None]:
        rows: list[Row | None] = []
        size = 0
        for ident in ids:
            task = self._memory.task(tenant, ident)
            rows.append(task.row if task is not None else None)
            size += sum(map(len, task.row)) if task is not None else 0
            if size >= most_bytes:
                break
        return rows

    async def page(
        self, tenant: str, wanted: TaskFilter, cursor: str, limit: int, *, newest_first: bool
    ) -> Page:
        ids = self._memory.ids.get(tenant, [])
        if newest_first:
            ids = ids[: bisect_left(ids, cursor)][::-1] if cursor else ids[::-1]
        else:
            ids = ids[bisect_right(ids, cursor) :]
        rows: list[Row] = []
        size = 0
        last = ""
        for ident in ids:
            task = self._memory.tasks[tenant][ident]
            if not _matches(task, wanted):
                continue
            if len(rows) == limit or size >= MAX_PAGE_BYTES:
                return Page(rows, last)
            rows.append(task.row)
            size += sum(map(len, task.row))
            last = ident
        return Page(rows, "")

    async def count(self, tenant: str) -> dict[int, int]:
        totals = dict.fromkeys(range(PENDING, LAST_STATE + 1), 0)
        for name in [tenant] if tenant else await self.tenants():
            for task in self._memory.tasks.get(name, {}).values():
                totals[task.state] += 1
        return totals

    async def tenants(self) -> list[str]:
        return sorted(self._memory.tasks)

    async def expired(self, ended_before_clock_ms: int, limit: int) -> list[Expired]:
        memory = self._memory
        old = sorted((at, name) for name, at in memory.ended.items() if at < ended_before_clock_ms)
        return [
            Expired(tenant, ident, memory.tasks[tenant][ident].spec)
            for _, (tenant, ident) in old[:limit]
        ]

    async def surplus(self, kept: int, ended_before_clock_ms: int, limit: int) -> list[Expired]:
        beyond = len(self._memory.ended) - kept
        return await self.expired(ended_before_clock_ms, max(0, min(beyond, limit)))

    async def remove(self, removals: Sequence[Removal]) -> int:
        memory = self._memory
        removed = 0
        for tenant, ident, _, _ in removals:
            task = memory.task(tenant, ident)
            if task is None or task.state < FIRST_ENDED:
                continue
            if task.output_blob:
                memory.release(tenant, task.output_blob, f"o:{ident}")
            for attempt, (sha256, *_) in memory.logs.pop((tenant, ident), {}).items():
                memory.release(tenant, sha256, f"l:{ident}:{attempt}")
            del memory.tasks[tenant][ident]
            del memory.ended[tenant, ident]
            ids = memory.ids[tenant]
            del ids[bisect_left(ids, ident)]
            request = memory.request_of.get(ident[:PREFIX_CHARS])
            if request is not None:
                request.gone = True
            removed += 1
        return removed

    async def old_requests(self, before_clock_ms: int, limit: int) -> list[OldRequest]:
        old = sorted(
            (request.look_at_clock_ms, tenant, key, request.first_ms)
            for (tenant, key), request in self._memory.requests.items()
            if request.look_at_clock_ms < before_clock_ms
        )
        return [OldRequest(tenant, key, first_ms) for _, tenant, key, first_ms in old[:limit]]

    async def forget_requests(
        self, requests: Sequence[tuple[OldRequest, str]], look_again_clock_ms: int
    ) -> int:
        forgotten = 0
        for (tenant, key, first_ms), prefix in requests:
            request = self._memory.requests.get((tenant, key))
            if request is None or request.first_ms != first_ms:
                continue
            ids = self._memory.ids.get(tenant, [])
            at = bisect_left(ids, prefix)
            if at < len(ids) and ids[at].startswith(prefix):
                request.look_at_clock_ms = look_again_clock_ms
            else:
                del self._memory.requests[tenant, key]
                del self._memory.request_of[prefix]
                forgotten += 1
        return forgotten

    async def last(self) -> int:
        return self._memory.seq

    async def after(self, seq: int, limit: int) -> list[LogEntry]:
        events = self._memory.events
        if not events or seq >= self._memory.seq:
            return []
        skip = max(0, seq + 1 - events[0].seq)
        return list(islice(events, skip, skip + limit))

    async def wait_beyond(self, seq: int, wait_s: float) -> int:
        try:
            async with asyncio.timeout(wait_s):
                while seq >= self._memory.seq:
                    self._memory.written.clear()
                    await self._memory.written.wait()
        except TimeoutError:
            return seq
        return self._memory.seq

    def attend(self, heard: Callable[[LogBatch | None], None]) -> None:
        """Nobody is told: what is in memory is read as quickly."""

    @property
    def writing(self) -> bool:
        return False


def _matches(task: _Task, wanted: TaskFilter) -> bool:
    return (
        wanted.state in (0, task.state)
        and wanted.skill in ("", task.skill)
        and wanted.agent in ("", task.agent)
        and task.labels.issuperset(wanted.labels)
    )
