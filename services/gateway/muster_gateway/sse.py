"""Server-sent events: their text, and streams that resume by Last-Event-ID."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final

from starlette.requests import Request
from starlette.responses import StreamingResponse

from muster.api.v1 import storage_pb2
from muster.domain.errors import MusterError
from muster_gateway.tail import Missed, Subscription, TailFeed, parse_event_id, position
from muster_gateway.views import encode, event_json, event_name

MEDIA_TYPE: Final = "text/event-stream"
# Proxies cut a connection that is silent for 30 to 60 s; clients with another gateway to turn to
# leave one that has stopped after 10 s.
HEARTBEAT_S: Final = 5.0
HEARTBEAT: Final = b": still here\n\n"
# Comes first, so that headers go out and clients reconnect soon.
OPENING: Final = b"retry: 1000\n\n"


def sse(name: str, data: bytes, ident: str = "") -> bytes:
    """One event. `data` has no line break: it is JSON as msgspec writes it."""
    head = f"id: {ident}\nevent: {name}\n" if ident else f"event: {name}\n"
    return b"%bdata: %b\n\n" % (head.encode(), data)


def gap(why: str) -> bytes:
    """The last event of a stream that broke off: reconnect with Last-Event-ID."""
    return sse("gap", encode({"why": why}))


_MISSED: Final = sse("missed", encode({"why": "storage no longer has all events since then"}))


def stream_response(events: AsyncIterator[bytes]) -> StreamingResponse:
    """`X-Accel-Buffering` keeps nginx from collecting events."""
    return StreamingResponse(events, media_type=MEDIA_TYPE, headers={"X-Accel-Buffering": "no"})


def last_event_id(request: Request) -> str:
    """Where the client left off; empty when it begins. Raises InvalidInput."""
    text = request.headers.get("last-event-id", "") or request.query_params.get("after", "")
    return parse_event_id(text) if text else ""


async def event_stream(
    feed: TailFeed,
    accept: Callable[[storage_pb2.Event], bool],
    after: str,
    *,
    opening: Callable[[], Awaitable[Iterable[bytes]]] | None = None,
    is_last: Callable[[storage_pb2.Event], bool] = lambda _: False,
) -> AsyncIterator[bytes]:
    """What came after `after`, then what comes.

    `opening` is awaited once nothing can be missed any more; it raises Done when nothing more
    will come. The first event that `is_last` is the last.
    """
    reached = position(after) if after else (0, 0)
    with feed.subscribe(accept) as subscription:
        yield OPENING
        await subscription.settle()
        if subscription.joined_at:
            # A position of the future (the log has lost its end) must hide nothing new.
            reached = min(reached, position(subscription.joined_at))
        try:
            async for part in _parts(feed, subscription, after, opening):
                if isinstance(part, bytes):
                    yield part
                    continue
                # The past and the present overlap by what came while the past was read.
                if position(part.id) > reached:
                    reached = position(part.id)
                    yield sse(event_name(part), event_json(part), part.id)
                    if is_last(part):
                        return
        except MusterError as error:
            yield gap(str(error))


async def _parts(
    feed: TailFeed,
    subscription: Subscription,
    after: str,
    opening: Callable[[], Awaitable[Iterable[bytes]]] | None,
) -> AsyncIterator[storage_pb2.Event | bytes]:
    """Events, and messages that stand between them."""
    if after:
        async for past in feed.history(after, subscription):
            yield _MISSED if isinstance(past, Missed) else past
    try:
        for message in await opening() if opening is not None else ():
            yield message
    except Done as done:
        for message in done.messages:
            yield message
        # What came while the opening was made; it ends with the last event, or is empty.
        for event in await subscription.take(0):
            yield event
        return
    while True:
        live = await subscription.take(HEARTBEAT_S)
        for event in live:
            yield event
        if subscription.ended is not None:
            yield gap(subscription.ended)
            return
        if not live:
            yield HEARTBEAT


class Done(Exception):
    """Raised by an `opening`: after these messages no event will come."""

    def __init__(self, messages: Iterable[bytes]) -> None:
        self.messages = tuple(messages)
        super().__init__("nothing more will come")
