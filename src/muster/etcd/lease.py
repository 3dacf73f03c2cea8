"""Renews many leases over one stream, each answer within a deadline."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from muster.cancellation import contained
from muster.domain.errors import Unavailable
from muster.etcd import wire
from muster.etcd.client import EtcdClient
from muster.etcd.retry import Backoff
from muster.etcd.stream import Stream, StreamLostError

__all__ = ["LeaseKeeper"]

_log = structlog.get_logger(__name__)

ANSWER_WITHIN_S = 2.0

# Three beats of the largest cluster that one registry is meant for; beyond that etcd is not
# keeping up, and callers are better told at once.
MAX_WAITING = 30_000

_BACKOFF = Backoff(first_s=0.05, max_s=0.5)


class _Renewal:
    """One request on its way. It stays known after its caller gave up: its late answer must not
    be taken for that of a later request."""

    __slots__ = ("answer", "lease_id", "written_at_s")

    def __init__(self, lease_id: int, answer: asyncio.Future[int]) -> None:
        self.lease_id = lease_id
        self.answer = answer
        self.written_at_s = 0.0


class LeaseKeeper:
    """Open it before use (`async with`, or `open` and `close`).

    A stream that leaves a request unanswered for half of `answer_within_s` is replaced, and what
    is still wanted is asked again on the next one.
    """

    def __init__(
        self,
        client: EtcdClient,
        *,
        answer_within_s: float = ANSWER_WITHIN_S,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._answer_within_s = answer_within_s
        self._stalled_after_s = answer_within_s / 2
        self._chance = chance
        self._outbox: deque[_Renewal] = deque()
        self._unanswered: dict[int, deque[_Renewal]] = {}
        self._waiting = 0
        self._heard_at_s = 0.0
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="etcd-lease-keeper")

    async def close(self) -> None:
        """Renewals under way end with `Unavailable`."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for renewal in self._drop_unanswered() + list(self._outbox):
            _fail(renewal, "the lease keeper was closed")
        self._outbox.clear()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def renew(self, lease_id: int) -> int:
        """The lease's new life in seconds, counted from some time after this call began; 0 when
        the lease is gone. `Unavailable` when etcd did not say which within the deadline."""
        if self._task is None:
            raise Unavailable("etcd", "the lease keeper is not open")
        if self._task.done():
            raise Unavailable("etcd", "the lease keeper failed") from self._task.exception()
        if self._waiting >= MAX_WAITING:
            raise Unavailable("etcd", f"{MAX_WAITING} lease renewals are waiting already")
        renewal = _Renewal(lease_id, asyncio.get_running_loop().create_future())
        self._outbox.append(renewal)
        self._work.set()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._answer_within_s):
                return await renewal.answer
        except TimeoutError as exc:
            raise Unavailable(
                "etcd", f"lease {lease_id:x} was not renewed within {self._answer_within_s:g} s"
            ) from exc
        finally:
            self._waiting -= 1

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._work.wait()
            self._heard_at_s = 0.0
            reason = await self._serve(Stream(self._client.dial(failures), wire.start_keep_alive))
            if self._heard_at_s:
                failures = 0
            failures += 1
            # Asked again in the old order, before what came meanwhile.
            again = [r for r in self._drop_unanswered() if not r.answer.done()]
            self._outbox.extendleft(reversed(again))
            if self._outbox:
                self._work.set()
            _log.warning("etcd_keep_alive_reconnects", reason=reason, waiting=len(self._outbox))
            await asyncio.sleep(_BACKOFF.delay_s(failures, self._chance()))

    async def _serve(self, stream: Stream) -> str:
        """Until the stream is lost; returns how."""
        reason = ""
        async with stream:
            try:
                await contained(self._exchange(stream))
            except* StreamLostError as group:
                reason = str(group.exceptions[0])
        return reason

    async def _exchange(self, stream: Stream) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write(stream))
            tasks.create_task(self._read(stream))
            tasks.create_task(self._look_for_stall())

    async def _write(self, stream: Stream) -> None:
        while True:
            while self._outbox:
                renewal = self._outbox.popleft()
                if renewal.answer.done():
                    continue
                renewal.written_at_s = time.monotonic()
                self._unanswered.setdefault(renewal.lease_id, deque()).append(renewal)
                await stream.write(wire.keep_alive_request(renewal.lease_id))
            self._work.clear()
            await self._work.wait()

    async def _read(self, stream: Stream) -> None:
        while True:
            message = await stream.read()
            self._heard_at_s = time.monotonic()
            asked = self._unanswered.get(message.ID)
            if not asked:
                continue
            renewal = asked.popleft()
            if not asked:
                del self._unanswered[message.ID]
            if not renewal.answer.done():
                renewal.answer.set_result(max(0, message.TTL))

    async def _look_for_stall(self) -> None:
        while True:
            await asyncio.sleep(self._stalled_after_s / 4)
            oldest_s = min((q[0].written_at_s for q in self._unanswered.values()), default=None)
            if oldest_s is None:
                continue
            silent_s = time.monotonic() - max(oldest_s, self._heard_at_s)
            if silent_s > self._stalled_after_s:
                raise StreamLostError(f"no lease renewal was answered for {silent_s:.1f} s")

    def _drop_unanswered(self) -> list[_Renewal]:
        dropped = [renewal for asked in self._unanswered.values() for renewal in asked]
        self._unanswered.clear()
        return sorted(dropped, key=lambda renewal: renewal.written_at_s)


def _fail(renewal: _Renewal, reason: str) -> None:
    if not renewal.answer.done():
        renewal.answer.set_exception(Unavailable("etcd", reason))
