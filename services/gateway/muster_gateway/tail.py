"""The gateway's one stream of events from storage, and who listens to it."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import TracebackType
from typing import Final

import structlog

from muster.api.v1 import storage_pb2, storage_pb2_grpc, task_pb2
from muster.domain.errors import InvalidInput, MusterError, Overloaded, Unavailable
from muster.rpc.channels import ServiceChannel, full_jitter
from muster.rpc.clock import wall_ms
from muster.rpc.status import rpc_errors
from muster_gateway.metrics import SUBSCRIBERS
from muster_gateway.positions import Positions
from muster_gateway.watching import WatchBoard

_LOG = structlog.get_logger("muster.gateway.tail")

# Open event streams; each may hold a full queue.
MAX_SUBSCRIBERS: Final = 256
# A listener this far behind is cut off, and resumes where it was by Last-Event-ID.
_MAX_QUEUED_EVENTS: Final = 2_000
# While the tail is down, whoever waits reads this often instead of being woken.
_BLIND_REREAD_S: Final = 0.5
# No event for this long while catching up: a gap is told, and live ones go on.
_HISTORY_QUIET_S: Final = 2.0
# A listener that cannot be told the present hears a little of the past instead.
_PRESENT_TIMEOUT_S: Final = 2.0
_EVENT_ID = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?", re.ASCII)

_TASK_KINDS: Final = frozenset(
    {storage_pb2.EVENT_KIND_TASK_CREATED, storage_pb2.EVENT_KIND_TASK_CHANGED}
)
ENDED: Final = frozenset(
    {
        task_pb2.TASK_STATE_SUCCEEDED,
        task_pb2.TASK_STATE_FAILED,
        task_pb2.TASK_STATE_CANCELLED,
        task_pb2.TASK_STATE_TIMED_OUT,
        task_pb2.TASK_STATE_DEAD,
    }
)


def parse_event_id(text: str, field: str = "Last-Event-ID") -> str:
    """Raises InvalidInput."""
    if not _EVENT_ID.fullmatch(text):
        raise InvalidInput(field, text, "must be the id of an event")
    return text


def position(event_id: str) -> tuple[int, int]:
    """An event id as something that can be compared: later is greater."""
    major, _, minor = event_id.partition("-")
    return int(major), int(minor or 0)


class Missed:
    """Stands for events that storage no longer has."""


class Subscription:
    """Events for one listener, in order. Used in a `with` block."""

    def __init__(self, feed: TailFeed, accept: Callable[[storage_pb2.Event], bool]) -> None:
        self._feed = feed
        self._accept = accept
        self._queue: deque[storage_pb2.Event] = deque()
        self._wake = asyncio.Event()
        # Events after this id are, or will be, in the queue.
        self.joined_at = feed.last_id
        self._floor = (0, 0)
        # Why no more will come; None while they do.
        self.ended: str | None = None

    def __enter__(self) -> Subscription:
        self._feed.join(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._feed.leave(self)

    def accepts(self, event: storage_pb2.Event) -> bool:
        return self._accept(event)

    async def settle(self) -> None:
        """Leaves out what happened before now, which the feed may still hand on."""
        now_id = await self._feed.present()
        if now_id:
            self.joined_at, self._floor = now_id, position(now_id)
            kept = [event for event in self._queue if position(event.id) > self._floor]
            self._queue = deque(kept)

    def push(self, event: storage_pb2.Event) -> None:
        if self._floor != (0, 0) and position(event.id) <= self._floor:
            return
        if self.ended is None and self._accept(event):
            if len(self._queue) >= _MAX_QUEUED_EVENTS:
                self.end("too far behind")
                return
            self._queue.append(event)
            self._wake.set()

    def end(self, why: str) -> None:
        """No more will come after what is queued."""
        self.ended = self.ended or why
        self._wake.set()

    async def take(self, timeout_s: float) -> list[storage_pb2.Event]:
        """What has come; empty when nothing came in time, or the subscription has ended."""
        if not self._queue and self.ended is None:
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                return []
        taken = list(self._queue)
        self._queue.clear()
        return taken


class TailFeed:
    """Feeds the watch board and the event streams from `StorageService.Tail`."""

    def __init__(self, storage: ServiceChannel, board: WatchBoard) -> None:
        self._storage = storage
        self._board = board
        self._subscriptions: set[Subscription] = set()
        self.last_id = ""
        self.positions = Positions()
        # Events come in as they happen; false from a break until the first message after it.
        self.live = False
        # The gateway goes down: nobody should go on waiting.
        self.closed = False
        # Ends the present call, to go on from the same place with another choice of events.
        self._turn: Callable[[], object] | None = None
        self._turning = False
        self._narrow = True

    @property
    def reread_s(self) -> float | None:
        """How often a waiter must read by itself; None = it will be woken."""
        return None if self.live else _BLIND_REREAD_S

    async def run(self) -> None:
        """For as long as the gateway lives: reads, reconnects from the last id."""
        failures = 0
        while True:
            at = self._storage.address
            failure: MusterError | None = None
            try:
                # Waiters need the ends of tasks alone, which is a third of all events.
                self._narrow = not self._subscriptions
                async for response in self._tail(self.last_id, only_ended=self._narrow):
                    failures = 0
                    self._take(response)
                why = "the stream ended"
            except MusterError as error:
                failure, why = error, str(error)
            except asyncio.CancelledError:
                # A call that is cancelled here ends like this as well.
                task = asyncio.current_task()
                if not self._turning or (task is not None and task.cancelling()):
                    raise
            if self._turning:
                self._turning = False
                continue
            if self.live or failures == 0:
                _LOG.warning("the event stream broke; it is taken up again", why=why)
            self.live = False
            if not self.last_id:
                self._board.invalidate()
            self._storage.turn_from(at, failure)
            await asyncio.sleep(0.02 + full_jitter(failures))
            failures += 1

    def subscribe(self, accept: Callable[[storage_pb2.Event], bool]) -> Subscription:
        """Events that `accept` takes, from now on."""
        return Subscription(self, accept)

    async def history(
        self, after: str, subscription: Subscription
    ) -> AsyncIterator[storage_pb2.Event | Missed]:
        """What the subscription accepts of the events after `after` and up to its beginning.

        Missed stands where storage no longer has some. Raises Unavailable.
        """
        if not subscription.joined_at:
            raise Unavailable("the event stream", "it is not connected yet")
        end = position(subscription.joined_at)
        reached = position(after)
        if reached >= end:
            return
        stream = self._tail(after)
        try:
            while reached < end:
                try:
                    async with asyncio.timeout(_HISTORY_QUIET_S):
                        response = await anext(stream, None)
                except TimeoutError:
                    # Trimmed, or storage stalls: either way the reader has not seen all.
                    yield Missed()
                    return
                if response is None:
                    raise Unavailable("the event stream", "it ended early")
                if response.gap:
                    yield Missed()
                for event in response.events:
                    if position(event.id) <= end and subscription.accepts(event):
                        yield event
                if response.last_id:
                    reached = position(response.last_id)
        finally:
            await stream.aclose()

    async def _tail(
        self, from_id: str, *, only_ended: bool | None = None
    ) -> AsyncGenerator[storage_pb2.TailResponse, None]:
        """`only_ended` None: a stream beside the feed's own, with all events."""
        with rpc_errors("storage"):
            call = self._storage.stream(
                storage_pb2_grpc.StorageServiceStub,
                "Tail",
                storage_pb2.TailRequest(from_id=from_id, only_ended=bool(only_ended)),
            )
            if only_ended is not None:
                self._turn = call.cancel
            try:
                async for response in call:
                    yield response
            finally:
                call.cancel()

    async def present(self) -> str:
        """The id of the newest event there is; empty when storage does not say."""
        stream = self._tail("")
        try:
            async with asyncio.timeout(_PRESENT_TIMEOUT_S):
                response = await anext(stream, None)
        except (TimeoutError, MusterError):
            return ""
        finally:
            await stream.aclose()
        return response.last_id if response is not None else ""

    def _choose_again(self) -> None:
        """Somebody has begun, or everybody has ceased, to want all events."""
        wanted = not self._subscriptions
        if self._turn is not None and self.last_id and self.live and wanted != self._narrow:
            self._turning = True
            self._turn()
            self._turn = None

    def join(self, subscription: Subscription) -> None:
        """Raises Overloaded."""
        if self.closed:
            raise Unavailable("the gateway", "it is shutting down")
        if len(self._subscriptions) >= MAX_SUBSCRIBERS:
            raise Overloaded(f"{MAX_SUBSCRIBERS} event streams are open already", 5.0)
        self._subscriptions.add(subscription)
        self._choose_again()
        SUBSCRIBERS.set(len(self._subscriptions))

    def leave(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        self._choose_again()
        SUBSCRIBERS.set(len(self._subscriptions))

    def close(self) -> None:
        """Ends every stream and wakes every waiter: the gateway goes down."""
        self.closed = True
        for subscription in self._subscriptions:
            subscription.end("the gateway is shutting down")
        self._board.invalidate()

    def _take(self, response: storage_pb2.TailResponse) -> None:
        note = self._board.note
        for event in response.events:
            if event.kind in _TASK_KINDS:
                ended = event.state in ENDED
                whole = event if ended and event.HasField("outcome") else None
                note(event.tenant, event.task_id, ended=ended, event=whole)
        if self._subscriptions:
            for subscription in tuple(self._subscriptions):
                for event in response.events:
                    subscription.push(event)
        if response.last_id:
            self.last_id = response.last_id
            self.positions.note(wall_ms(), response.last_id)
        if response.gap:
            _LOG.warning("events were trimmed before they were read")
            for subscription in tuple(self._subscriptions):
                subscription.end("events were lost")
        if response.gap or not self.live:
            if not self.live:
                _LOG.info("the event stream is connected", last_id=self.last_id)
            self.live = True
            self._board.invalidate()
            self._choose_again()
