"""Server-sent events: lines to events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SentEvent:
    """One event of a stream; `id` is the latest one given, for resuming after it."""

    name: str
    data: str
    id: str


def events_in(lines: Iterable[str]) -> Iterator[SentEvent]:
    """The events as they are completed; one that breaks off is dropped.

    Source: WHATWG HTML, "Interpreting an event stream".
    """
    name, ident = "", ""
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield SentEvent(name or "message", "\n".join(data), ident)
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            name = value
        elif field == "id" and "\0" not in value:
            ident = value
