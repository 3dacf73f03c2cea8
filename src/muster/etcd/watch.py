"""Endless watches that lose nothing over disconnects, restarts and compactions of etcd."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog

from muster.domain.errors import Unavailable
from muster.etcd import wire
from muster.etcd.client import EtcdClient
from muster.etcd.retry import Backoff
from muster.etcd.stream import Stream, StreamLostError
from muster.etcd.watch_core import (
    EventKind,
    Liveness,
    Step,
    WatchAnswer,
    WatchBatch,
    WatchCursor,
    WatchEndedError,
    WatchEvent,
    WatchKind,
)

__all__ = [
    "EventKind",
    "WatchBatch",
    "WatchEvent",
    "WatchKind",
    "WatchTiming",
    "watch_key",
    "watch_prefix",
]

_log = structlog.get_logger(__name__)

# A list and a watch by each of a cluster's few watchers once a second do not hurt a weak etcd.
_BACKOFF = Backoff(first_s=0.05, max_s=1.0)


@dataclass(frozen=True, slots=True)
class WatchTiming:
    """After `idle_s` of silence the stream is asked for a sign of life; none within
    `answer_within_s` means a new connection. So a half-open one is noticed after their sum."""

    idle_s: float = 2.0
    answer_within_s: float = 3.0
    backoff: Backoff = _BACKOFF


_TIMING = WatchTiming()


def watch_prefix(
    client: EtcdClient,
    prefix: str,
    *,
    timing: WatchTiming = _TIMING,
    chance: Callable[[], float] = random.random,
) -> AsyncGenerator[WatchBatch, None]:
    """A SNAPSHOT of all keys under `prefix`, then every change; a new SNAPSHOT when changes were
    compacted away or etcd turns out to have another past (emptied, restored). Endless: while
    etcd is away nothing comes. Close it with `contextlib.aclosing` or cancel its task.
    """
    start = prefix.encode()
    return _watch(client, start, wire.prefix_end(start), timing, chance)


def watch_key(
    client: EtcdClient,
    key: str,
    *,
    timing: WatchTiming = _TIMING,
    chance: Callable[[], float] = random.random,
) -> AsyncGenerator[WatchBatch, None]:
    """As `watch_prefix`, for one key alone."""
    return _watch(client, key.encode(), b"", timing, chance)


async def _watch(
    client: EtcdClient,
    start: bytes,
    end: bytes,
    timing: WatchTiming,
    chance: Callable[[], float],
) -> AsyncGenerator[WatchBatch, None]:
    log = _log.bind(prefix=start.decode())
    cursor = WatchCursor()
    relist, failures, attempt = True, 0, 0
    while True:
        try:
            if not relist:
                versions = await client.list_versions(start, end, cursor.revision)
                relist = not cursor.continues(versions)
                if relist:
                    log.warning("etcd_watch_met_another_past", revision=cursor.revision)
            if relist:
                kvs, revision = await client.list_range(start, end)
                relist = False
                yield cursor.snapshot(kvs, revision)
            async with _WatchStream(client, attempt, timing) as stream:
                await stream.begin(start, end, cursor.revision + 1)
                while True:
                    batch = cursor.take(await stream.next())
                    if stream.proven:
                        failures = 0
                    if batch is not None:
                        yield batch
        except WatchEndedError as exc:
            relist = True
            log.warning("etcd_watch_lists_again", reason=str(exc), revision=cursor.revision)
        except (StreamLostError, Unavailable) as exc:
            log.warning("etcd_watch_reconnects", reason=str(exc), revision=cursor.revision)
        failures += 1
        attempt += 1
        await asyncio.sleep(timing.backoff.delay_s(failures, chance()))


class _WatchStream:
    """A watch on one connection that gives up on it when it stays silent."""

    def __init__(self, client: EtcdClient, attempt: int, timing: WatchTiming) -> None:
        self._stream = Stream(client.dial(attempt), wire.start_watch)
        self._liveness = Liveness(timing.idle_s, timing.answer_within_s, time.monotonic())
        self._reading: asyncio.Task[wire.Message] | None = None
        self._answers = 0

    @property
    def proven(self) -> bool:
        """It brought more than the confirmation of the watch."""
        return self._answers > 1

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._stream.__aexit__(exc_type, exc, trace)

    async def begin(self, start: bytes, end: bytes, revision: int) -> None:
        await self._stream.write(wire.watch_request(start, end, revision))

    async def next(self) -> WatchAnswer:
        """The next answer; raises `StreamLostError`."""
        while True:
            if self._reading is None:
                # A read that is cancelled ends the stream, hence a task that outlives the wait.
                self._reading = asyncio.create_task(self._stream.read())
            step, left_s = self._liveness.next_step(time.monotonic())
            await asyncio.wait({self._reading}, timeout=left_s)
            if self._reading.done():
                reading, self._reading = self._reading, None
                message = reading.result()
                self._liveness.heard(time.monotonic())
                self._answers += 1
                return wire.watch_answer(message)
            if step is Step.DEAD:
                raise StreamLostError("the stream is silent")
            if step is Step.PROBE:
                self._liveness.asked(time.monotonic())
                await self._stream.write(wire.progress_request())
