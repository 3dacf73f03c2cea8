"""Streams of events: partial outputs of a task, its log, and everything that happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from muster.client.calls import read_result, task_path
from muster.client.errors import Unreachable, Unreadable, unsuccessful
from muster.client.exchange import (
    Broken,
    Close,
    Deadline,
    Emit,
    Op,
    Pause,
    Read,
    Request,
    Settings,
    exchange,
)
from muster.client.models import ENDED, Event, LogLine, Partial
from muster.client.sse import EventReader, SentEvent

M = TypeVar("M")

# The gateway sends a comment every 5 s; a stream that is silent for long is dead.
_SILENCE_S: Final = 50.0
_DUE_S: Final = 5.0
# Breaks without an event between them.
_MAX_BREAKS: Final = 20
# After so many in a row the events since the last one are given up: they are kept no more.
_GAPS: Final = 3


def follow(
    settings: Settings,
    path: str,
    params: Mapping[str, str],
    deadline: Deadline,
    on_event: Callable[[SentEvent], Op[bool]],
) -> Op[None]:
    """Hands events to `on_event` until it says that this was the last.

    A stream that breaks off goes on after the last event; Unreachable when that fails for long.
    """
    last_id, breaks = "", 0
    while True:
        headers = {"Accept": "text/event-stream"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        request = Request("GET", path, params, headers)
        yield from exchange(
            settings, request, deadline, quiet_s=_SILENCE_S, due_s=_DUE_S, stream=True
        )
        reader, why = EventReader(), "the events ended early"
        while True:
            piece = yield Read()
            deadline.left_s()
            if piece is None:
                break
            if isinstance(piece, Broken):
                why = piece.why
                break
            for event in reader.feed(piece):
                if event.name == "gap":
                    continue
                breaks, last_id = 0, event.id or last_id
                if (yield from on_event(event)):
                    yield Close()
                    return
        yield Close()
        breaks += 1
        if breaks > _GAPS:
            last_id = ""
        if breaks > _MAX_BREAKS:
            raise Unreachable(why)
        yield Pause(settings.delay_s(breaks))


class _State(msgspec.Struct):
    state: str = ""


class _Seen:
    """The last partial output that was handed out."""

    def __init__(self) -> None:
        self._attempt, self._index = 0, -1
        self._value: Any = None

    def take(self, event: Event) -> Partial | None:
        """The partial output in an event, unless it is none, or was handed out before."""
        if event.partial_index is None:
            return None
        if (event.attempt, event.partial_index) <= (self._attempt, self._index):
            return None
        self._attempt, self._index = event.attempt, event.partial_index
        self._value = event.partial
        return Partial(event.partial, event.partial_index, event.attempt)

    def rest(self, result: Any, attempt: int) -> list[Partial]:
        """What came too late to be sent, as far as the result tells: the list of all yields."""
        if not isinstance(result, list) or (self._index >= 0 and attempt != self._attempt):
            return []
        if self._index >= 0 and (len(result) <= self._index or result[self._index] != self._value):
            return []
        return [Partial(result[i], i, attempt) for i in range(self._index + 1, len(result))]


def stream(settings: Settings, ident: str, timeout_s: float | None) -> Op[None]:
    """Emits Partials until the task has ended; raises TaskUnsuccessful when it fails."""
    deadline = settings.deadline(f"following task {ident}", timeout_s)
    seen = _Seen()

    def on_event(event: SentEvent) -> Op[bool]:
        if event.name == "task.progress":
            partial = seen.take(_decoded(event, Event))
            if partial is not None:
                yield Emit(partial)
            return False
        return _decoded(event, _State).state in ENDED

    params = {"from_start": "1"}
    yield from follow(settings, task_path(ident, "/events"), params, deadline, on_event)
    ended = None
    while ended is None:
        ended = yield from read_result(settings, ident, 1.0, deadline)
    if not ended.succeeded:
        raise unsuccessful(ended)
    for partial in seen.rest(ended.result, ended.attempt):
        yield Emit(partial)


def follow_logs(settings: Settings, ident: str, attempt: int, timeout_s: float | None) -> Op[None]:
    """Emits LogLines as they come, each once, until the task has ended."""
    deadline = settings.deadline(f"following the log of task {ident}", timeout_s)
    # Lines of an attempt come in order, but a stream that is taken up begins at the beginning.
    reached: dict[int, int] = {}

    def on_event(event: SentEvent) -> Op[bool]:
        if event.name == "line":
            line = _decoded(event, LogLine)
            if line.index > reached.get(line.attempt, -1):
                reached[line.attempt] = line.index
                yield Emit(line)
        return event.name == "end"

    params = {"follow": "1", **({"attempt": str(attempt)} if attempt else {})}
    yield from follow(settings, task_path(ident, "/logs"), params, deadline, on_event)


def events(
    settings: Settings, task: str | None, state: str | None, after: str, timeout_s: float | None
) -> Op[None]:
    """Emits Events without end."""
    wanted = {"task": task, "state": state, "after": after}
    params = {name: text for name, text in wanted.items() if text}

    def on_event(event: SentEvent) -> Op[bool]:
        if event.name != "missed":
            yield Emit(_decoded(event, Event))
        return False

    deadline = settings.deadline("following events", timeout_s)
    yield from follow(settings, "/v1/events", params, deadline, on_event)


def _decoded(event: SentEvent, kind: type[M]) -> M:
    try:
        return msgspec.json.decode(event.data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unreadable(f"an event {event.name} cannot be read: {error}") from error
