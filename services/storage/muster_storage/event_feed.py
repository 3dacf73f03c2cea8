"""One reader of the event log for the whole process, fanned out to every Tail.

What this process writes is handed out as soon as it is written; the log is read for what others
wrote, which shows as a hole in the numbers. A subscriber reads the log from its position until it
has caught up, then lives on what the one reader hands out. When it is too slow for its bounded
queue, it goes back to reading the log, so it misses nothing that the log still holds; what was
trimmed meanwhile it is told of as a gap.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import NamedTuple

from muster.cancellation import contained
from muster.domain.errors import Overloaded, Unavailable
from muster_storage.metrics import EVENTS, TAIL_GAPS, TAIL_LAGGED, TAIL_SUBSCRIBERS
from muster_storage.records import LogBatch, LogEntry
from muster_storage.task_store import EventLog
from muster_storage.wire import framed_event

# Of events in one read of the log.
READ_EVENTS = 500
# Of one message to a subscriber; gRPC's bound is 16 MiB.
MAX_BATCH_BYTES = 4 * 1024 * 1024
# Of what a subscriber has not taken yet: about 40,000 events, three seconds of a busy cluster.
MAX_QUEUE_BYTES = 8 * 1024 * 1024
MAX_SUBSCRIBERS = 1_000
# A subscriber that wants few events still learns its position after this many, to resume from.
POSITION_EVERY = 1_000
WAIT_S = 1.0
# Of this process's own writes behind a hole that is being read; then the log is read for them too.
MAX_PENDING_WRITES = 1_000
# Between two questions for news. What other processes write is heard so much later, and at most
# PATIENCE_S later while writes of our own are under way.
NEWS_PAUSE_S = 0.002
# Longest time that news is left unread because it may be of an own write that is under way: those
# that are refused in part are never told of, and there may always be some.
PATIENCE_S = 0.05
# Longest time that a new subscriber waits for the reader's first answer from the log.
START_TIMEOUT_S = 3.0
_RETRY_PAUSE_S = 0.1


class TailBatch(NamedTuple):
    """`frames` is a serialized repeated field of events, `last` the position after them.

    `gap`: events before these had been trimmed before they were read.
    """

    frames: bytes
    last: int
    gap: bool


class EventFilter:
    """Which events a subscriber wants, by their heads; events of no tenant belong to all."""

    def __init__(
        self,
        kinds: frozenset[int] = frozenset(),
        tenant: str = "",
        *,
        only_term_zero: bool = False,
        only_ended: bool = False,
    ) -> None:
        self._kinds = kinds
        self._tenant = tenant
        # What the middle of a head must be; empty = anything.
        self._writer = "0" if only_term_zero else "2" if only_ended else ""
        # There are few distinct heads: kinds × 3 × tenants.
        self._known: dict[bytes, bool] = {}

    def __call__(self, head: bytes) -> bool:
        known = self._known.get(head)
        if known is None:
            kind, writer, tenant = head.decode().split(":", 2)
            known = self._known[head] = (
                (not self._kinds or int(kind) in self._kinds)
                and (not self._tenant or tenant in ("", self._tenant))
                and (not self._writer or writer == self._writer)
            )
        return known


class _Subscriber:
    """Batches that the reader has handed out after `start` and the subscriber has not taken."""

    __slots__ = ("lagged", "queue", "queued_bytes", "start", "wake")

    def __init__(self, start: int) -> None:
        self.start = start
        self.queue: deque[tuple[LogBatch, int]] = deque()
        self.queued_bytes = 0
        # Nothing more comes; the subscriber starts again from the log.
        self.lagged = False
        self.wake = asyncio.Event()

    def give(self, batch: LogBatch, size: int) -> None:
        if self.lagged:
            return
        if self.queued_bytes + size > MAX_QUEUE_BYTES and self.queue:
            TAIL_LAGGED.inc()
            self.cut_off()
            return
        self.queue.append((batch, size))
        self.queued_bytes += size
        self.wake.set()

    def cut_off(self) -> None:
        self.queue.clear()
        self.queued_bytes = 0
        self.lagged = True
        self.wake.set()

    async def take(self) -> LogBatch | None:
        """The next batch, as soon as there is one; None when it was cut off."""
        while not self.queue and not self.lagged:
            self.wake.clear()
            await self.wake.wait()
        if self.lagged:
            return None
        batch, size = self.queue.popleft()
        self.queued_bytes -= size
        return batch


class EventFeed:
    """`run` reads the log; every `tail` is one subscriber."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._position = 0
        # How often the log came back shorter than it had been.
        self._losses = 0
        self._started = asyncio.Event()
        self._subscribers: set[_Subscriber] = set()
        self._closed = False
        # Own writes that wait for what others wrote before them; how far the log is said to go.
        self._pending: deque[LogBatch] = deque()
        self._said = 0
        self._wake = asyncio.Event()
        # After which position news is left to own writes, and whether that was for too long.
        self._spared = -1
        self._overdue = False
        log.attend(self._heard)

    def close(self) -> None:
        """Ends every subscriber with Unavailable, so that it turns to another service at once."""
        self._closed = True
        for subscriber in self._subscribers:
            subscriber.cut_off()

    async def run(self) -> None:
        """Follows the log until it is cancelled; goes on where it was when the log comes back."""
        while True:
            try:
                await contained(self._follow())
            except* (Unavailable, Overloaded):
                # The log is away, or too much waits for it; how far it goes is asked anew.
                pass
            await asyncio.sleep(random.uniform(0.0, _RETRY_PAUSE_S))  # noqa: S311  jitter

    async def tail(
        self, after: int | None, wanted: Callable[[bytes], bool]
    ) -> AsyncGenerator[TailBatch, None]:
        """Events after number `after` (None = from now on, 0 = from the oldest kept), for ever.

        The first batch comes at once and holds no event: it names the position that nothing is
        missed after. Raises Unavailable when the log does not answer while it is read for this
        subscriber, Overloaded when there are too many subscribers.
        """
        last = await self._log.last()
        position = last if after is None else min(after, last)
        # A number from the future: the log has lost its end, and what stood there is unknown.
        yield self._gap(position) if after is not None and after > last else _nothing(position)
        told = position
        # What was trimmed before the oldest kept event is no gap to who asked for that one.
        may_skip = after == 0
        losses = self._losses
        while True:
            subscriber = await self._join()
            try:
                while True:
                    if position < subscriber.start:
                        entries = await self._log.after(position, READ_EVENTS)
                        # With none left, all up to where the reader is has been trimmed.
                        found = _batch(entries) if entries else LogBatch(subscriber.start + 1, [])
                    else:
                        taken = await subscriber.take()
                        if taken is None:
                            break
                        found = taken
                    if found.first > position + 1:
                        told = position = found.first - 1
                        if not may_skip:
                            yield self._gap(position)
                    may_skip = False
                    for batch in _messages(found, position, wanted):
                        if batch.frames or batch.last - told >= POSITION_EVERY:
                            told = batch.last
                            yield batch
                        position = batch.last
            finally:
                self._leave(subscriber)
            if losses != self._losses:
                losses = self._losses
                told = position = min(position, self._position)
                yield self._gap(position)

    async def _follow(self) -> None:
        # What is heard while the log is asked may be newer than its answer: that is no loss.
        reached = self._position
        last = await self._log.last()
        if not self._started.is_set():
            self._position = last
            self._started.set()
        elif last < reached:
            # The log came back without its end: what the numbers after it meant is gone.
            self._position = last
            self._losses += 1
            for subscriber in self._subscribers:
                subscriber.cut_off()
        self._pending.clear()
        self._said = last
        self._wake.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(), name="news of events")
            group.create_task(self._deliver(), name="events")

    async def _watch(self) -> None:
        while True:
            self._said = await self._log.wait_beyond(max(self._said, self._position), WAIT_S)
            if self._said > self._position:
                self._wake.set()
            # Most news is our own, which was heard already: it need not be asked for each time.
            await asyncio.sleep(NEWS_PAUSE_S)

    def _heard(self, batch: LogBatch | None) -> None:
        if batch is None:
            if self._position < self._said:
                self._wake.set()
        elif not self._started.is_set():
            return
        elif batch.first == self._position + 1 and not self._pending:
            self._hand_out(batch)
        else:
            if len(self._pending) == MAX_PENDING_WRITES:
                self._pending.clear()
            self._pending.append(batch)
            self._said = max(self._said, batch.last)
            self._wake.set()

    async def _deliver(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._position < self._said or self._pending:
                pending = self._pending
                if pending and pending[0].first == self._position + 1:
                    self._hand_out(pending.popleft())
                elif pending and pending[0].first <= self._position:
                    pending.popleft()
                elif not pending and self._log.writing and self._patient():
                    # Most likely it is our own, and we shall be told.
                    break
                else:
                    entries = await self._log.after(self._position, READ_EVENTS)
                    if not entries:
                        # Trimmed already: more than the log holds was written meanwhile.
                        break
                    # Own writes may have been handed out meanwhile.
                    entries = [entry for entry in entries if entry.seq > self._position]
                    if entries:
                        self._hand_out(_batch(entries))

    def _patient(self) -> bool:
        if self._spared != self._position:
            self._spared, self._overdue = self._position, False
            loop = asyncio.get_running_loop()
            loop.call_later(PATIENCE_S, self._end_patience, self._position)
        return not self._overdue

    def _end_patience(self, position: int) -> None:
        if position == self._position:
            self._overdue = True
            self._wake.set()

    def _hand_out(self, batch: LogBatch) -> None:
        last = batch.last
        EVENTS.inc(last - batch.first + 1)
        self._position = last
        if self._subscribers:
            size = batch.size
            for subscriber in self._subscribers:
                subscriber.give(batch, size)

    async def _join(self) -> _Subscriber:
        if self._closed:
            raise Unavailable("this storage service", "it is shutting down")
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._started.wait()
        except TimeoutError:
            raise Unavailable("redis", "its events were not reached yet") from None
        if len(self._subscribers) >= MAX_SUBSCRIBERS:
            raise Overloaded(f"storage: there are {MAX_SUBSCRIBERS} Tail streams already")
        subscriber = _Subscriber(self._position)
        self._subscribers.add(subscriber)
        TAIL_SUBSCRIBERS.set(len(self._subscribers))
        return subscriber

    def _leave(self, subscriber: _Subscriber) -> None:
        self._subscribers.discard(subscriber)
        TAIL_SUBSCRIBERS.set(len(self._subscribers))

    def _gap(self, position: int) -> TailBatch:
        TAIL_GAPS.inc()
        return TailBatch(b"", position, gap=True)


def _nothing(position: int) -> TailBatch:
    return TailBatch(b"", position, gap=False)


def _batch(entries: Sequence[LogEntry]) -> LogBatch:
    """What was read from the log; `entries` are consecutive and not empty."""
    runs: list[tuple[bytes, list[bytes]]] = []
    for _, head, event in entries:
        if runs and runs[-1][0] == head:
            runs[-1][1].append(event)
        else:
            runs.append((head, [event]))
    return LogBatch(entries[0].seq, runs)


def _messages(
    found: LogBatch, position: int, wanted: Callable[[bytes], bool]
) -> Iterator[TailBatch]:
    """What is wanted of the events after `position`, in messages of bounded size."""
    chosen: list[bytes] = []
    size = 0
    seq = found.first - 1
    for head, events in found.runs:
        if not wanted(head):
            seq += len(events)
            continue
        for event in events:
            seq += 1
            if seq <= position:
                continue
            frame = framed_event(seq, event)
            if size + len(frame) > MAX_BATCH_BYTES and chosen:
                yield TailBatch(b"".join(chosen), seq - 1, gap=False)
                chosen, size = [], 0
            chosen.append(frame)
            size += len(frame)
    yield TailBatch(b"".join(chosen), max(seq, position), gap=False)
