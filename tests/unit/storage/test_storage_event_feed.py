"""The fan-out of events over a log in memory: order, gaps, slow subscribers, lost logs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest
from tests.polling import HANG_S, eventually

from muster.api.v1 import storage_pb2 as pb
from muster.domain.errors import Overloaded, Unavailable
from muster_storage import event_feed
from muster_storage.event_feed import EventFeed, EventFilter
from muster_storage.memory_store import MemoryStore
from muster_storage.records import LogBatch, LogEntry, event_head
from muster_storage.task_store import EventLog

EVERYTHING = EventFilter()
KEPT = 5_000


class Tail:
    """A subscriber that remembers what it was told."""

    def __init__(
        self, feed: EventFeed, after: int | None, wanted: Callable[[bytes], bool] = EVERYTHING
    ) -> None:
        self.batches = feed.tail(after, wanted)
        self.seen: list[int] = []
        self.last = -1
        self.gaps: list[int] = []

    async def step(self) -> None:
        async with asyncio.timeout(HANG_S):
            batch = await anext(self.batches)
        message = pb.TailResponse.FromString(batch.frames)
        self.seen += [int(event.id) for event in message.events]
        self.last = batch.last
        if batch.gap:
            self.gaps.append(batch.last)

    async def until(self, last: int) -> None:
        while self.last < last:
            await self.step()


@asynccontextmanager
async def running(log: EventLog) -> AsyncIterator[EventFeed]:
    feed = EventFeed(log)
    work = asyncio.create_task(feed.run())
    try:
        yield feed
    finally:
        work.cancel()
        await asyncio.wait([work])


@asynccontextmanager
async def tailing(
    feed: EventFeed, after: int | None, wanted: Callable[[bytes], bool] = EVERYTHING
) -> AsyncIterator[Tail]:
    """A subscriber that knows its position."""
    tail = Tail(feed, after, wanted)
    async with aclosing(tail.batches):
        await tail.step()
        yield tail


def write(store: MemoryStore, count: int, *, kind: int = 2, term: int = 1, size: int = 0) -> None:
    body = pb.Event(term=term, partial_json=b"x" * size).SerializeToString()
    for _ in range(count):
        store.memory.emit(event_head(kind, "default", term), body)


async def test_from_now_on_means_from_the_first_answer_on() -> None:
    store = MemoryStore(KEPT)
    write(store, 3)
    async with running(store.events) as feed, tailing(feed, None) as tail:
        assert (tail.last, tail.seen) == (3, [])
        write(store, 2)
        await tail.until(5)
        assert (tail.seen, tail.gaps) == ([4, 5], [])


@pytest.mark.parametrize("after", [0, 2, 10])
async def test_a_subscriber_resumes_after_its_position(after: int) -> None:
    store = MemoryStore(KEPT)
    write(store, 10)
    async with running(store.events) as feed, tailing(feed, after) as tail:
        write(store, 1)
        await tail.until(11)
        assert (tail.seen, tail.gaps) == (list(range(after + 1, 12)), [])


async def test_every_subscriber_sees_every_event_once_in_order() -> None:
    store = MemoryStore(KEPT)
    async with running(store.events) as feed, tailing(feed, 0) as early:
        write(store, 700)
        async with tailing(feed, 0) as late, tailing(feed, 300) as middle:
            for _ in range(5):
                write(store, 100)
                await early.step()
            for tail in (early, late, middle):
                await tail.until(1_200)
            assert early.seen == late.seen == list(range(1, 1_201))
            assert middle.seen == list(range(301, 1_201))
            assert early.gaps == late.gaps == middle.gaps == []


async def test_a_slow_subscriber_goes_back_to_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "MAX_QUEUE_BYTES", 10_000)
    store = MemoryStore(KEPT)
    async with (
        running(store.events) as feed,
        tailing(feed, None) as slow,
        tailing(feed, None) as quick,
    ):
        write(store, 1)
        await slow.until(1)
        for n in range(1, 11):
            write(store, 50, size=100)
            await quick.until(1 + 50 * n)
        (lagging,) = [s for s in feed._subscribers if s.lagged]
        assert not lagging.queue
        await slow.until(501)
        assert slow.seen == quick.seen == list(range(1, 502))
        assert slow.gaps == []


async def test_what_was_trimmed_is_a_gap() -> None:
    store = MemoryStore(events_kept=100)
    write(store, 300)
    async with running(store.events) as feed:
        async with tailing(feed, 50) as resumed:
            await resumed.until(300)
            assert (resumed.gaps, resumed.seen) == ([200], list(range(201, 301)))
        async with tailing(feed, 0) as oldest:
            await oldest.until(300)
            assert (oldest.gaps, oldest.seen) == ([], list(range(201, 301)))
        async with tailing(feed, 199) as exact, tailing(feed, 200) as none_missed:
            await exact.until(300)
            await none_missed.until(300)
            assert (exact.gaps, none_missed.gaps) == ([200], [])


async def test_a_subscriber_too_slow_for_the_log_itself_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_feed, "MAX_QUEUE_BYTES", 1_000)
    store = MemoryStore(events_kept=100)
    async with (
        running(store.events) as feed,
        tailing(feed, None) as slow,
        tailing(feed, None) as quick,
    ):
        write(store, 1)
        await slow.until(1)
        for n in range(1, 11):
            write(store, 50, size=100)
            await quick.until(1 + 50 * n)
        await slow.until(501)
        assert slow.gaps == [401]
        assert slow.seen == [1, *range(402, 502)]


async def test_filters_by_kind_tenant_and_writer() -> None:
    heads = [
        event_head(kind, tenant, term)
        for kind in (1, 2, 6)
        for tenant in ("default", "other", "")
        for term in (0, 4)
    ]

    def wanted(filters: EventFilter) -> set[str]:
        return {head for head in heads if filters(head.encode())}

    assert wanted(EventFilter()) == set(heads)
    assert wanted(EventFilter(frozenset({1}), "default")) == {
        *("1:0:default", "1:1:default", "1:0:", "1:1:"),
    }
    assert wanted(EventFilter(only_term_zero=True)) == {h for h in heads if ":0:" in h}


async def test_who_wants_few_events_still_learns_its_position() -> None:
    store = MemoryStore(KEPT)
    async with (
        running(store.events) as feed,
        tailing(feed, 0, EventFilter(only_term_zero=True)) as tail,
    ):
        write(store, 2_500)
        write(store, 1, term=0)
        await tail.until(1_000)
        assert tail.seen == []
        await tail.until(2_501)
        assert tail.seen == [2_501]


async def test_messages_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "MAX_BATCH_BYTES", 1_000)
    store = MemoryStore(KEPT)
    write(store, 20, size=300)
    async with running(store.events) as feed:
        sizes = []
        async with tailing(feed, 0) as tail:
            while tail.last < 20:
                before = len(tail.seen)
                await tail.step()
                sizes.append(len(tail.seen) - before)
        assert sizes == [3, 3, 3, 3, 3, 3, 2]


async def test_a_position_beyond_the_log_is_a_gap() -> None:
    store = MemoryStore(KEPT)
    write(store, 5)
    async with running(store.events) as feed, tailing(feed, 9) as tail:
        assert (tail.last, tail.gaps) == (5, [5])
        write(store, 1)
        await tail.until(6)
        assert tail.seen == [6]


class FlakyLog:
    """A log that can be cut off, and can come back without its end."""

    def __init__(self) -> None:
        self.store = MemoryStore(KEPT)
        self.down = False
        # How often somebody has noticed.
        self.refused = 0
        # What a wait for news waits for instead, and whether it does.
        self.waits: asyncio.Future[int] | None = None
        self.waiting = False

    def _check(self) -> None:
        if self.down:
            self.refused += 1
            raise Unavailable("redis", "cut off by the test")

    async def last(self) -> int:
        self._check()
        return await self.store.events.last()

    async def after(self, seq: int, limit: int) -> list[LogEntry]:
        self._check()
        return await self.store.events.after(seq, limit)

    async def wait_beyond(self, seq: int, wait_s: float) -> int:
        self._check()
        if self.waits is not None:
            self.waiting = True
            return await self.waits
        last = await self.store.events.wait_beyond(seq, 0.01)
        self._check()
        return last

    def attend(self, heard: Callable[[LogBatch | None], None]) -> None:
        pass

    @property
    def writing(self) -> bool:
        return False


async def test_an_outage_of_the_log_is_only_a_pause() -> None:
    log = FlakyLog()
    async with running(log) as feed, tailing(feed, None) as tail:
        log.down = True
        write(log.store, 10)
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await anext(feed.tail(None, EVERYTHING))
        log.down = False
        await tail.until(10)
        assert (tail.seen, tail.gaps) == (list(range(1, 11)), [])


async def test_a_log_that_goes_away_as_the_feed_ends_does_not_keep_it_alive() -> None:
    log = FlakyLog()
    feed = EventFeed(log)
    work = asyncio.create_task(feed.run())
    waits = log.waits = asyncio.get_running_loop().create_future()
    async with tailing(feed, None):
        await eventually(lambda: log.waiting)
        waits.set_exception(Unavailable("redis", "test"))
        work.cancel()
        log.waits = None
        await asyncio.wait([work], timeout=HANG_S)
        assert work.cancelled()


async def test_a_log_that_lost_its_end_is_a_gap() -> None:
    log = FlakyLog()
    async with running(log) as feed, tailing(feed, None) as tail:
        write(log.store, 10)
        await tail.until(10)
        waiting = asyncio.create_task(tail.step())
        log.down = True
        log.refused = 0
        await eventually(lambda: log.refused > 0)
        log.store = MemoryStore(KEPT)
        write(log.store, 4)
        log.down = False
        await waiting
        assert (tail.last, tail.gaps) == (4, [4])
        write(log.store, 1)
        await tail.until(5)
        assert tail.seen == [*range(1, 11), 5]


async def test_subscribers_are_bounded_and_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "MAX_SUBSCRIBERS", 1)
    store = MemoryStore(KEPT)
    async with running(store.events) as feed:
        async with tailing(feed, None) as first:
            write(store, 1)
            await first.until(1)
            async with tailing(feed, None) as second:
                with pytest.raises(Overloaded):
                    await second.step()
        async with tailing(feed, 0) as third:
            await third.until(1)
        assert not feed._subscribers


async def test_a_feed_that_never_reached_its_log_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "START_TIMEOUT_S", 0.01)
    feed = EventFeed(MemoryStore().events)
    async with tailing(feed, None) as tail:
        with pytest.raises(Unavailable):
            await tail.step()


async def test_a_feed_that_closes_ends_its_subscribers() -> None:
    store = MemoryStore(KEPT)
    async with running(store.events) as feed, tailing(feed, None) as tail:
        waiting = asyncio.create_task(tail.step())
        write(store, 1)
        await waiting
        waiting = asyncio.create_task(tail.step())
        await asyncio.sleep(0)
        feed.close()
        with pytest.raises(Unavailable):
            await waiting


class OwnLog(FlakyLog):
    """A log of a process whose own writes are always under way; the test tells of them."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.heard: Callable[[LogBatch | None], None] = lambda batch: None
        # While it is set, answers with events are held back.
        self.held: asyncio.Event | None = None
        self.reads = 0
        # The same for how far the log goes.
        self.last_held: asyncio.Event | None = None
        self.asked = 0

    async def last(self) -> int:
        last = await super().last()
        self.asked += 1
        if self.last_held is not None:
            await self.last_held.wait()
        return last

    async def after(self, seq: int, limit: int) -> list[LogEntry]:
        if self.full:
            self.refused += 1
            raise Overloaded("storage: full, says the test")
        entries = await super().after(seq, limit)
        self.reads += 1
        if self.held is not None:
            await self.held.wait()
        return entries

    def attend(self, heard: Callable[[LogBatch | None], None]) -> None:
        self.heard = heard

    @property
    def writing(self) -> bool:
        return True


async def test_own_writes_that_nobody_tells_of_hide_no_others() -> None:
    log = OwnLog()
    async with running(log) as feed, tailing(feed, None) as tail:
        await feed._started.wait()
        write(log.store, 3)
        await tail.until(3)
        write(log.store, 1)
        await tail.until(4)
        assert (tail.seen, tail.gaps) == ([1, 2, 3, 4], [])


async def test_an_own_write_heard_while_the_log_is_read_comes_once() -> None:
    log = OwnLog()
    log.held = asyncio.Event()
    async with running(log) as feed, tailing(feed, None) as tail:
        await feed._started.wait()
        write(log.store, 2)
        await eventually(lambda: log.reads > 0)
        log.heard(LogBatch(1, [(b"2:1:default", [b""])]))
        log.held.set()
        await tail.until(2)
        write(log.store, 1)
        await tail.until(3)
        assert (tail.seen, tail.gaps) == ([1, 2, 3], [])


async def test_a_log_that_takes_no_more_calls_is_read_later() -> None:
    log = OwnLog()
    async with running(log) as feed, tailing(feed, None) as tail:
        await feed._started.wait()
        log.full = True
        write(log.store, 3)
        await eventually(lambda: log.refused > 1)
        log.full = False
        await tail.until(3)
        assert (tail.seen, tail.gaps) == ([1, 2, 3], [])


async def test_an_own_write_heard_while_the_log_is_asked_how_far_it_goes_is_no_loss() -> None:
    log = OwnLog()
    async with running(log) as feed, tailing(feed, None) as tail:
        await feed._started.wait()
        write(log.store, 2)
        await tail.until(2)
        log.last_held = asyncio.Event()
        log.asked = log.refused = 0
        log.down = True
        await eventually(lambda: log.refused > 0)
        log.down = False
        await eventually(lambda: log.asked > 0)
        # The answer, 2, is on its way.
        write(log.store, 1)
        log.heard(LogBatch(3, [(b"2:1:default", [b""])]))
        await tail.until(3)
        log.last_held.set()
        write(log.store, 1)
        await tail.until(4)
        assert (tail.seen, tail.gaps) == ([1, 2, 3, 4], [])
