"""Tasks and requests in Redis: lists in, scripts of bounded length out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from muster.domain.errors import StaleTerm
from muster.domain.ids import TenantId, request_prefix
from muster_storage.continuity import Continuity
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
from muster_storage.redis_batches import (
    CHUNK_BYTES,
    CHUNK_TASKS,
    LABELS_AS_ONE_TASK,
    Batch,
    Group,
    batches,
)
from muster_storage.redis_events import RedisEvents
from muster_storage.redis_link import KEY_PREFIX, Argument, RedisLink, Reply

# Of ids that one list script looks at when it filters; 1 µs for each further index.
LIST_SCAN_IDS = 1_000
# Of list scripts for one page, after which a short page with a cursor is the better answer.
LIST_SCANS = 5
READ_IDS = 200
# Of answers with rows that are under way at once: each may hold MAX_PAGE_BYTES.
READS_AT_ONCE = 16

_T = TypeVar("_T")

ALL_STATES = range(PENDING, LAST_STATE + 1)


class RedisTasks:
    """TaskStore. What it writes into the event log it also tells `events` of."""

    def __init__(
        self, link: RedisLink, events: RedisEvents, events_kept: int, continuity: Continuity
    ) -> None:
        self._link = link
        self._continuity = continuity
        self._events = events
        self._events_kept = events_kept
        self._reading = asyncio.Semaphore(READS_AT_ONCE)

    async def create(self, term: int, tasks: Sequence[Creation]) -> Created:
        clock_ms = 0
        standing = [b""] * len(tasks)
        calls = batches(tasks, _about_creation)
        arguments = [self._arguments(term, tasks, batch, _creation_fields) for batch in calls]
        with self._events.write():
            answers = await self._fenced("create", term, arguments)
            for batch, (_, clock, first, *rows) in zip(calls, answers, strict=True):
                clock_ms = int(clock)
                if rows:
                    for position, row in zip(batch.positions(), rows, strict=True):
                        standing[position] = row
                else:
                    self._events.wrote(first, _runs(tasks, batch))
        self._continuity.heard(clock_ms)
        return Created(clock_ms if calls else await self._clock_ms(), standing)

    async def apply(self, term: int, changes: Sequence[Change]) -> list[Verdict]:
        verdicts = [APPLIED] * len(changes)
        calls = batches(changes, _about_change)
        arguments = [self._arguments(term, changes, batch, _change_fields) for batch in calls]
        with self._events.write():
            answers = await self._fenced("apply", term, arguments)
            for batch, (_, first, *replies) in zip(calls, answers, strict=True):
                if replies:
                    for position, reply in zip(batch.positions(), replies, strict=True):
                        if reply != b"":
                            verdicts[position] = (
                                Verdict(VerdictCode.STALE, reply) if reply else MISSING
                            )
                else:
                    self._events.wrote(first, _runs(changes, batch))
        return verdicts

    def _arguments(
        self,
        term: int,
        items: Sequence[_T],
        batch: Batch,
        fields: Callable[[_T], Sequence[Argument]],
    ) -> list[Argument]:
        arguments: list[Argument] = [term, self._events_kept, batch.tenant]
        for group, members in batch.groups.items():
            arguments.append(len(members))
            arguments += cast("tuple[Argument, ...]", group)
            for position in members:
                arguments += fields(items[position])
        return arguments

    async def publish(self, term: int, notices: Sequence[Notice]) -> int:
        chunks = _Chunks((term, self._events_kept))
        for notice in notices:
            chunks.add(1, len(notice.event) + len(notice.progress), notice)
        answers = await self._fenced("publish", term, chunks.closed())
        return sum([answer[1] for answer in answers])

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
        specs = await self._link.call(
            "MGET", *[f"{KEY_PREFIX}{tenant}:t:{ident}" for tenant, ident in names]
        )
        return [
            Expired(tenant, ident, spec or b"")
            for (tenant, ident), spec in zip(names, specs, strict=True)
        ]

    async def remove(self, removals: Sequence[Removal]) -> int:
        chunks = _Chunks(())
        for removal in removals:
            labels = removal.labels
            weight = 1 + len(labels) / LABELS_AS_ONE_TASK
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

    async def _clock_ms(self) -> int:
        return int(await self._link.call("GET", f"{KEY_PREFIX}clock") or 0)

    async def _fenced(
        self, script: str, term: int, argument_lists: Sequence[Sequence[Argument]]
    ) -> list[Reply]:
        self._continuity.check(term)
        if not argument_lists:
            return []
        answers = await self._link.script_each(script, argument_lists)
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


def _about_creation(task: Creation) -> tuple[str, str, Group, float, int]:
    labels, state, agent = task.labels, task.state, task.agent
    head = f"{state}:{task.attempt}:{agent}\n"
    group = (state, head, agent, task.skill, task.stamp, task.event_head, len(labels), *labels)
    weight = 1 + len(labels) / LABELS_AS_ONE_TASK
    return task.tenant, task.id, group, weight, len(task.spec) + len(task.status)


def _creation_fields(task: Creation) -> tuple[Argument, ...]:
    return task.id, task.spec, task.status, task.event


def _about_change(change: Change) -> tuple[str, str, Group, float, int]:
    state, agent, outcome = change.state, change.agent, change.outcome
    was = f"{change.expect_state}:{change.expect_attempt}:"
    head = f"{state}:{change.attempt}:{agent}\n"
    kind = 0 if not outcome else 2 if change.output_blob else 1
    group = (was, state, head, agent, change.event_head, kind)
    return change.tenant, change.id, group, 1, len(outcome) + len(change.status)


def _change_fields(change: Change) -> tuple[Argument, ...]:
    outcome = change.outcome
    if not outcome:
        return change.id, change.status, change.event
    if not change.output_blob:
        return change.id, change.status, change.event, outcome
    return change.id, change.status, change.event, outcome, change.output_blob


def _runs(
    items: Sequence[Creation] | Sequence[Change], batch: Batch
) -> list[tuple[bytes, list[bytes]]]:
    """The events of a call that did all that it was asked for, as the script wrote them."""
    runs: list[tuple[bytes, list[bytes]]] = []
    for members in batch.groups.values():
        head = items[members[0]].event_head.encode()
        events = [items[position].event for position in members]
        if runs and runs[-1][0] == head:
            runs[-1][1].extend(events)
        else:
            runs.append((head, events))
    return runs
