"""Server-sent events: lines to events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from muster.client.sse import EventReader


@dataclass(frozen=True, slots=True)
class SentEvent:
    """One event of a stream; `id` is the latest one given, for resuming after it."""

    name: str
    data: str
    id: str


def events_in(lines: Iterable[str]) -> Iterator[SentEvent]:
    """The events as they are completed; one that breaks off is dropped."""
    reader = EventReader()
    for line in lines:
        for event in reader.feed(line.encode() + b"\n"):
            yield SentEvent(event.name, event.data.decode("utf-8", "replace"), event.id)
