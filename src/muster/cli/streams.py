"""Commands that follow a stream: logs, events, the changes of one task."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

from muster.cli.endings import ENDED
from muster.cli.failure import EXIT_UNREACHABLE, Failure
from muster.cli.rest import BrokenStream, Rest
from muster.cli.session import Session
from muster.cli.show import clean, clock
from muster.cli.sse import SentEvent, events_in

# The oldest event that is kept, and what came after it.
_FROM_THE_OLDEST = "0"
# What was recorded comes at once; after this much silence nothing old is left.
_SILENCE_S = 2.0
# Breaks without an event between them; the gateway itself is waited for by `Rest`.
_MAX_BREAKS = 20
_PAUSE_S = 0.5
# After so many breaks in a row the events since the last one are given up.
_GAPS = 3


def print_logs(session: Session, ident: str, *, as_json: bool) -> None:
    """All lines that there are."""
    answer = session.rest.get(f"/v1/tasks/{ident}/logs")
    if as_json:
        session.print_json(answer)
        return
    for line in answer["items"]:
        _print_line(line)
    if answer.get("truncated"):
        session.note("the log was longer and has been cut")


def follow_logs(session: Session, ident: str, *, as_json: bool) -> None:
    """Lines as they come, until the task has ended."""
    seen: set[tuple[int, int]] = set()

    def show(event: SentEvent) -> bool:
        if event.name == "line":
            line = json.loads(event.data)
            # A stream that is taken up again begins at the beginning.
            if (place := (line["attempt"], line["index"])) not in seen:
                seen.add(place)
                print(event.data, flush=True) if as_json else _print_line(line)
        return event.name == "end"

    _follow(session.rest, f"/v1/tasks/{ident}/logs", {"follow": "1"}, show)


def _print_line(line: dict[str, Any]) -> None:
    out = sys.stderr if line.get("stream") == "stderr" else sys.stdout
    print(clean(line["text"].rstrip("\n")), file=out, flush=True)


def print_events(session: Session, *, follow: bool, as_json: bool) -> None:
    """The recorded events, or those from now on."""

    def show(event: SentEvent) -> bool:
        _print_event(event, as_json=as_json)
        return False

    if follow:
        _follow(session.rest, "/v1/events", {}, show)
        return
    params = {"after": _FROM_THE_OLDEST}
    with session.rest.lines("GET", "/v1/events", params=params, silence_s=_SILENCE_S) as lines:
        try:
            for event in events_in(lines):
                if event.name != "gap":
                    show(event)
        except BrokenStream:
            # Silence: all that was recorded has come.
            return


def watch_task(session: Session, ident: str, *, as_json: bool) -> dict[str, Any]:
    """Prints each change of a task until it ends; returns how it ended."""

    def show(event: SentEvent) -> bool:
        record = json.loads(event.data)
        if event.name.startswith("task."):
            _print_event(event, as_json=as_json)
        return record.get("state") in ENDED

    _follow(session.rest, f"/v1/tasks/{ident}/events", {}, show)
    task: dict[str, Any] = session.rest.get(f"/v1/tasks/{ident}", {"include": "input"})
    return task


def _print_event(event: SentEvent, *, as_json: bool) -> None:
    if as_json:
        print(event.data, flush=True)
        return
    record = json.loads(event.data)
    progress = record.get("progress") or {}
    fraction = progress.get("fraction")
    words = [
        clock(record.get("at")),
        event.name,
        record.get("task", ""),
        record.get("state") or record.get("agent_state") or "",
        f"{fraction:.0%}" if isinstance(fraction, int | float) else "",
        progress.get("note", ""),
        record.get("agent", ""),
        f"try {record['attempt']}" if record.get("attempt") else "",
        record.get("skill", ""),
        record.get("why", ""),
        json.dumps(record["partial"]) if "partial" in record else "",
    ]
    print(clean("  ".join(word for word in words if word)), flush=True)


def _follow(
    rest: Rest, path: str, params: dict[str, str], show: Callable[[SentEvent], bool]
) -> None:
    """Feeds `show` until it says that this was the last; takes a broken stream up again."""
    with closing(_resumed(rest, path, params)) as events:
        try:
            for event in events:
                if event.name != "gap" and show(event):
                    return
        except KeyboardInterrupt:
            # The usual way to end this.
            return


def _resumed(rest: Rest, path: str, params: dict[str, str]) -> Generator[SentEvent, None, None]:
    last_id, breaks = "", 0
    while True:
        headers = {"Accept": "text/event-stream"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        why = "it ended"
        try:
            with rest.lines("GET", path, params=params, headers=headers) as lines:
                for event in events_in(lines):
                    if event.name != "gap":
                        breaks, last_id = 0, event.id or last_id
                    yield event
        except BrokenStream as broken:
            why = str(broken)
        breaks += 1
        if breaks > _GAPS:
            # What lies between is kept no more.
            last_id = ""
        if breaks > _MAX_BREAKS:
            raise Failure(f"the stream breaks off again and again: {why}", EXIT_UNREACHABLE)
        rest.sleep(_PAUSE_S)
