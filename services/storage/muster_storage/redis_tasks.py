"""Tasks, requests and events in Redis: lists in, scripts of bounded length out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from muster.domain.errors import StaleTerm
from muster.domain.ids import TenantId, request_prefix
from muster_storage.metrics import REFUSED_WRITES
from muster_storage.records import (
    APPLIED,
    LAST_STATE,
    MAX_PAGE_BYTES,
    MISSING,
    PENDING,
    Change,
    Created,
    Creation,
    Expired,
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
from muster_storage.redis_link import KEY_PREFIX, Argument, RedisLink, Reply

# Redis does nothing else while a script runs, so none may run for more than about 5 ms. A task
# costs 10 to 20 µs plus 2 µs for each label, and its bytes are copied twice.
CHUNK_TASKS = 150
CHUNK_BYTES = 1024 * 1024
_LABELS_AS_ONE_TASK = 8
# Of ids that one list script looks at when it filters; 1 µs for each further index.
LIST_SCAN_IDS = 1_000
# Of list scripts for one page, after which a short page with a cursor is the better answer.
LIST_SCANS = 5
READ_IDS = 200
# Of answers with rows that are under way at once: each may hold MAX_PAGE_BYTES.
READS_AT_ONCE = 16

ALL_STATES = range(PENDING, LAST_STATE + 1)


class RedisTasks:
    """TaskStore and EventLog. `tail_link` is only for waiting: a wait blocks its connection."""

    def __init__(self, link: RedisLink, tail_link: RedisLink, events_kept: int) -> None:
        self._link = link
        self._tail_link = tail_link
        self._events_kept = events_kept
        self._reading = asyncio.Semaphore(READS_AT_ONCE)

    async def create(self, term: int, tasks: Sequence[Creation]) -> Created:
        chunks = _Chunks((term, self._events_kept))
        for task in tasks:
            labels = task.labels
            weight = 1 + len(labels) / _LABELS_AS_ONE_TASK
            chunks.add(weight, len(task.spec) + len(task.status), task[:-1], len(labels), *labels)
        answers = await self._fenced("create", term, chunks)
        clock_ms = int(answers[-1][1]) if answers else await self._clock_ms()
        return Created(clock_ms, [row for answer in answers for row in answer[2:]])

    async def apply(self, term: int, changes: Sequence[Change]) -> list[Verdict]:
        chunks = _Chunks((term, self._events_kept))
        for change in changes:
            chunks.add(1, len(change.outcome) + len(change.status), change)
        verdicts = []
        for answer in await self._fenced("apply", term, chunks):
            for reply in answer[1:]:
                if reply == b"":
                    verdicts.append(APPLIED)
                elif reply == 0:
                    verdicts.append(MISSING)
                else:
                    verdicts.append(Verdict(VerdictCode.STALE, reply))
        return verdicts

    async def publish(self, term: int, notices: Sequence[Notice]) -> int:
        chunks = _Chunks((term, self._events_kept))
        for notice in notices:
            chunks.add(1, len(notice.event) + len(notice.progress), notice)
        return sum([answer[1] for answer in await self._fenced("publish", term, chunks)])

    async def reserve(self, tenant: str, key: str, body_hash: bytes, now_ms: int) -> Reservation:
        prefix = request_prefix(TenantId(tenant), key, now_ms)
        code, first_ms = await self._link.script("reserve", tenant, key, body_hash, now_ms, prefix)
        return Reservation(int(first_ms), first=code == 1, conflict=code == 2, gone=code == 3)

    async def get(self, tenant: str, ids: Sequence[str], most_bytes: int) -> list[Row | None]:
        rows: list[Row | None] = []
        size = 0
        while len(rows) < len(ids) and size < most_bytes:
            some = ids[len(rows) : len(rows) + READ_IDS]
            async with self._reading:
                reply = await self._link.script("read", tenant, most_bytes - size, *some)
            for values in reply:
                row = Row(*values) if values is not None else None
                rows.append(row)
                size += sum(map(len, row)) if row is not None else 0
        return rows

    async def page(
        self, tenant: str, wanted: TaskFilter, cursor: str, limit: int, *, newest_first: bool
    ) -> Page:
        indexes = await self._by_selectivity(tenant, wanted)
        scan_ids = LIST_SCAN_IDS if len(indexes) > 1 else limit
        rows: list[Row] = []
        size = 0
        for _ in range(LIST_SCANS):
            bounds = (limit - len(rows), scan_ids, MAX_PAGE_BYTES - size)
            async with self._reading:
                reply = await self._link.script(
                    "list", tenant, int(newest_first), cursor, *bounds, *indexes
                )
            cursor = reply[0].decode()
            rows += [Row(*values) for values in reply[1:]]
            size = sum([sum(map(len, row)) for row in rows])
            if not cursor or len(rows) >= limit or size >= MAX_PAGE_BYTES:
                break
        return Page(rows, cursor)

    async def count(self, tenant: str) -> dict[int, int]:
        totals = dict.fromkeys(ALL_STATES, 0)
        for name in [tenant] if tenant else await self.tenants():
            index = f"{KEY_PREFIX}{name}:i:s:"
            counts = await self._link.call_each([("ZCARD", f"{index}{s}") for s in ALL_STATES])
            for state, number in zip(ALL_STATES, counts, strict=True):
                totals[state] += number
        return totals

    async def tenants(self) -> list[str]:
        return sorted(
            name.decode() for name in await self._link.call("SMEMBERS", f"{KEY_PREFIX}tenants")
        )

    async def expired(self, ended_before_clock_ms: int, limit: int) -> list[Expired]:
        members = await self._link.call(
            *("ZRANGEBYSCORE", f"{KEY_PREFIX}ended", "-inf", f"({ended_before_clock_ms}"),
            *("LIMIT", 0, limit),
        )
        return await self._with_specs(members)

    async def surplus(self, kept: int, ended_before_clock_ms: int, limit: int) -> list[Expired]:
        return await self._with_specs(
            await self._link.script("surplus", kept, ended_before_clock_ms, limit)
        )

    async def _with_specs(self, members: Sequence[bytes]) -> list[Expired]:
        if not members:
            return []
        names = [member.decode().split(":", 1) for member in members]
        specs = await self._link.call_each(
            [("HGET", f"{KEY_PREFIX}{tenant}:t:{ident}", "spec") for tenant, ident in names]
        )
        return [
            Expired(tenant, ident, spec or b"")
            for (tenant, ident), spec in zip(names, specs, strict=True)
        ]

    async def remove(self, removals: Sequence[Removal]) -> int:
        chunks = _Chunks(())
        for removal in removals:
            labels = removal.labels
            weight = 1 + len(labels) / _LABELS_AS_ONE_TASK
            chunks.add(weight, 0, removal[:-1], len(labels), *labels)
        return sum(await self._link.script_each("remove", chunks.closed())) if removals else 0

    async def old_requests(self, before_clock_ms: int, limit: int) -> list[OldRequest]:
        members = await self._link.call(
            *("ZRANGEBYSCORE", f"{KEY_PREFIX}requests", "-inf", f"({before_clock_ms}"),
            *("LIMIT", 0, limit),
        )
        if not members:
            return []
        names = [member.decode().split(":", 1) for member in members]
        firsts = await self._link.call_each(
            [("HGET", f"{KEY_PREFIX}{tenant}:r:{key}", "f") for tenant, key in names]
        )
        return [
            OldRequest(tenant, key, int(first or 0))
            for (tenant, key), first in zip(names, firsts, strict=True)
        ]

    async def forget_requests(
        self, requests: Sequence[tuple[OldRequest, str]], look_again_clock_ms: int
    ) -> int:
        chunks = _Chunks((look_again_clock_ms,))
        for request, prefix in requests:
            chunks.add(1, 0, request, prefix)
        return sum(await self._link.script_each("forget", chunks.closed())) if requests else 0

    async def last(self) -> int:
        return int(await self._link.call("GET", f"{KEY_PREFIX}seq") or 0)

    async def after(self, seq: int, limit: int) -> list[LogEntry]:
        return _entries(
            await self._link.call(
                "XRANGE", f"{KEY_PREFIX}events", f"{seq + 1}-0", "+", "COUNT", limit
            )
        )

    async def wait_after(self, seq: int, limit: int, wait_s: float) -> list[LogEntry]:
        reply = await self._tail_link.call(
            *("XREAD", "COUNT", limit, "BLOCK", max(1, int(wait_s * 1000))),
            *("STREAMS", f"{KEY_PREFIX}events", f"{seq}-0"),
        )
        return _entries(reply[0][1]) if reply else []

    async def _clock_ms(self) -> int:
        return int(await self._link.call("GET", f"{KEY_PREFIX}clock") or 0)

    async def _fenced(self, script: str, term: int, chunks: _Chunks) -> list[Reply]:
        if chunks.empty:
            return []
        answers = await self._link.script_each(script, chunks.closed())
        for answer in answers:
            if answer[0] == b"STALE":
                REFUSED_WRITES.labels("fenced").inc()
                raise StaleTerm(term, int(answer[1]))
        return answers

    async def _by_selectivity(self, tenant: str, wanted: TaskFilter) -> list[str]:
        """Keys of the indexes that a task must stand in, the smallest one first."""
        index = f"{KEY_PREFIX}{tenant}:i:"
        keys = [f"{index}l:{label}" for label in wanted.labels]
        if wanted.state:
            keys.append(f"{index}s:{wanted.state}")
        if wanted.skill:
            keys.append(f"{index}k:{wanted.skill}")
        if wanted.agent:
            keys.append(f"{index}a:{wanted.agent}")
        if len(keys) < 2:
            return keys or [index + "all"]
        sizes = await self._link.call_each([("ZCARD", key) for key in keys])
        return [key for _, key in sorted(zip(sizes, keys, strict=True))]


class _Chunks:
    """Argument lists of one script, each short enough to run in one go."""

    def __init__(self, head: tuple[Argument, ...]) -> None:
        self._head = head
        self._lists: list[list[Argument]] = []
        # So that the first item opens the first list.
        self._weight: float = CHUNK_TASKS
        self._size = 0

    @property
    def empty(self) -> bool:
        return not self._lists

    def add(self, weight: float, size: int, fields: Sequence[Argument], *more: Argument) -> None:
        if self._weight + weight > CHUNK_TASKS or self._size + size > CHUNK_BYTES:
            self._lists.append(list(self._head))
            self._weight, self._size = 0.0, 0
        self._weight += weight
        self._size += size
        arguments = self._lists[-1]
        arguments.extend(fields)
        arguments.extend(more)

    def closed(self) -> list[list[Argument]]:
        return self._lists


def _entries(reply: Reply) -> list[LogEntry]:
    # [[b"17-0", [b"h", head, b"e", event]], ...]
    return [LogEntry(int(ident[:-2]), fields[1], fields[3]) for ident, fields in reply]
