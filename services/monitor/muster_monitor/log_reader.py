"""Reads the log of a task from memory and storage, and follows it to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from muster.api.v1 import storage_pb2 as pb
from muster.domain.errors import InvalidInput, NotFound, Overloaded, Unavailable
from muster.domain.ids import TaskId, TenantId, parse_agent_id, parse_task_id, parse_tenant_id
from muster.rpc.listeners import wait_for
from muster_monitor import metrics
from muster_monitor.attempt_log import AttemptLog
from muster_monitor.log_lines import Line, decode
from muster_monitor.log_store import LogStore
from muster_monitor.state import MonitorState
from muster_monitor.task_ends import TaskEnds
from muster_monitor.task_logs import LogKey

# One message of at most this many lines stays far under gRPC's limit with lines of 16 KiB.
PAGE_LINES = 250
# Each follower holds a call and wakes with every line; more belong behind a gateway's fan-out.
MAX_READERS = 500
# Lines travel once a second and the outcome at once: wait for the last ones this long.
_GRACE_MS = 2_500
_WAKE_EVERY_S = 0.5
# How often a log that another monitor keeps is looked up in storage.
_REFRESH_MS = 2_000
# `task_id` of an agent's own log.
AGENT_PREFIX = "agent/"


@dataclass(frozen=True, slots=True)
class Page:
    """Lines of one attempt, in order."""

    attempt: int
    lines: tuple[Line, ...]
    truncated: bool = False


class LogReader:
    """Opens readings; bounded in number."""

    def __init__(
        self,
        state: MonitorState,
        store: LogStore,
        ends: TaskEnds,
        boot_ms: Callable[[], int],
        wall_ms: Callable[[], int],
    ) -> None:
        self._state = state
        self._store = store
        self._ends = ends
        self._boot_ms = boot_ms
        self._wall_ms = wall_ms
        self._readers = 0

    async def read(
        self, tenant: str, task: str, attempt: int, *, follow: bool
    ) -> AsyncIterator[Page]:
        """Pages, oldest attempt first; raises NotFound for an unknown task.

        `attempt` 0 = all. A task id of "agent/<id>" reads that agent's own newest lines.
        """
        if self._readers >= MAX_READERS:
            raise Overloaded(f"{MAX_READERS} logs are being read already")
        if attempt < 0:
            raise InvalidInput("attempt", attempt, "0 (all) or more")
        self._readers += 1
        metrics.READERS.set(self._readers)
        try:
            if task.startswith(AGENT_PREFIX):
                reading = self._agent(task.removeprefix(AGENT_PREFIX), follow=follow)
            else:
                ids = parse_tenant_id(tenant or "default"), parse_task_id(task)
                reading = self._task(*ids, attempt, follow=follow)
            async for page in reading:
                yield page
        finally:
            self._readers -= 1
            metrics.READERS.set(self._readers)

    async def _agent(self, name: str, *, follow: bool) -> AsyncIterator[Page]:
        agent = parse_agent_id(name)
        known = self._state.agent_lines.knows(agent) or agent in self._state.registered
        if not known and agent not in self._state.last_seen_ms:
            raise NotFound("agent", agent)
        position = -1
        # An agent's log has no end of its own: a follower leaves when it has seen enough.
        while True:
            lines = self._state.agent_lines.after(agent, position)
            for start in range(0, len(lines), PAGE_LINES):
                yield Page(0, tuple(lines[start : start + PAGE_LINES]))
            if not follow:
                return
            position = lines[-1].index if lines else position
            await asyncio.sleep(_WAKE_EVERY_S)

    async def _task(
        self, tenant: TenantId, task: TaskId, attempt: int, *, follow: bool
    ) -> AsyncIterator[Page]:
        reading = _Reading(self._state, self._store, tenant, task, attempt)
        await reading.look_up(self._boot_ms())
        if reading.nothing and await self._ends.find(tenant, task) is None:
            raise NotFound("task", task)
        if not follow:
            async for page in reading.pages():
                yield page
            return
        self._ends.follow(tenant, task)
        try:
            with self._state.log_signal(tenant, task).listening() as event:
                while True:
                    # Asked before reading: lines that come in between are read once more.
                    over = self._is_over(reading)
                    async for page in reading.pages():
                        yield page
                    if over:
                        return
                    if not await wait_for(event, _WAKE_EVERY_S):
                        await reading.refresh(self._boot_ms())
        finally:
            self._ends.unfollow(tenant, task)
            self._state.drop_log_signal(tenant, task)

    def _is_over(self, reading: _Reading) -> bool:
        """A chosen attempt ends with its log; a task when it has ended and so has its last log."""
        if reading.attempt and reading.complete:
            return True
        ended_at_ms = self._ends.ended_at_ms(reading.tenant, reading.task)
        if ended_at_ms is None:
            return False
        return reading.complete or self._wall_ms() - ended_at_ms >= _GRACE_MS


class _Reading:
    """One reader's place in the logs of one task."""

    def __init__(
        self, state: MonitorState, store: LogStore, tenant: TenantId, task: TaskId, attempt: int
    ) -> None:
        self._state = state
        self._store = store
        self.tenant = tenant
        self.task = task
        self.attempt = attempt
        self._refs: dict[int, pb.TaskLogRef] = {}
        self._read_sha: dict[int, str] = {}
        self._positions: dict[int, int] = {}
        self._looked_ms = 0

    @property
    def nothing(self) -> bool:
        return not self._refs and not self._state.logs.attempts(self.tenant, self.task)

    @property
    def complete(self) -> bool:
        """Whether the log of the newest attempt (or of the chosen one) is known to be whole."""
        attempts = self._attempts()
        if not attempts:
            return False
        newest = attempts[-1]
        log = self._state.logs.get(self._key(newest))
        if log is not None and not self._is_behind(newest, log):
            return log.complete
        ref = self._refs.get(newest)
        return ref is not None and ref.complete and self._read_sha.get(newest) == ref.sha256

    async def look_up(self, now_ms: int) -> None:
        """Asks storage what it holds; without storage, memory has to do."""
        self._looked_ms = now_ms
        try:
            self._refs = await self._store.refs(self.tenant, self.task)
        except Unavailable:
            if not self._state.logs.attempts(self.tenant, self.task):
                raise

    async def refresh(self, now_ms: int) -> None:
        """Looks for what other monitors have stored, now and then."""
        if now_ms - self._looked_ms >= _REFRESH_MS:
            self._looked_ms = now_ms
            try:
                self._refs = await self._store.refs(self.tenant, self.task)
            except Unavailable:
                # What was read stays read; the next look may succeed.
                return

    async def pages(self) -> AsyncIterator[Page]:
        """Everything past this reader's place."""
        for attempt in self._attempts():
            key = self._key(attempt)
            log = self._state.logs.get(key)
            if log is not None and log.wants_older:
                await self._load(key)
                log = self._state.logs.get(key)
            if log is None or self._is_behind(attempt, log):
                async for page in self._stored_pages(attempt):
                    yield page
            if log is None:
                continue
            while encoded := log.lines_after(self._positions.get(attempt, -1), PAGE_LINES):
                found = [line for line in map(decode, encoded) if line is not None]
                self._positions[attempt] = found[-1].index
                yield Page(attempt, tuple(found), log.truncated)

    def _is_behind(self, attempt: int, log: AttemptLog) -> bool:
        """Whether another monitor has stored more lines than are known here."""
        ref = self._refs.get(attempt)
        return ref is not None and ref.next_index > log.next_index

    async def _stored_pages(self, attempt: int) -> AsyncIterator[Page]:
        ref = self._refs.get(attempt)
        if ref is None or self._read_sha.get(attempt) == ref.sha256:
            return
        lines = await self._store.read(self.tenant, ref.sha256)
        self._read_sha[attempt] = ref.sha256
        position = self._positions.get(attempt, -1)
        fresh = [line for line in lines if line.index > position]
        truncated = any(line.cut_lines for line in lines)
        for start in range(0, len(fresh), PAGE_LINES):
            page = fresh[start : start + PAGE_LINES]
            self._positions[attempt] = page[-1].index
            yield Page(attempt, tuple(page), truncated)

    async def _load(self, key: LogKey) -> None:
        try:
            await self._store.load_older(key)
        except Unavailable:
            # The newest lines are shown; the older ones follow at the next reading.
            return

    def _attempts(self) -> list[int]:
        known = {*self._refs, *self._state.logs.attempts(self.tenant, self.task)}
        return sorted(a for a in known if self.attempt in (0, a))

    def _key(self, attempt: int) -> LogKey:
        return LogKey(self.tenant, self.task, attempt)
