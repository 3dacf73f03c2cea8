"""Server-sent events: pieces of a stream to events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SentEvent:
    """One event; `id` is the latest one given, for going on after it."""

    name: str
    data: bytes
    id: str


class LineSplitter:
    """Pieces of bytes to lines. Only line feeds end a line: JSON may hold U+2028 and its like."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends."""
        head, newline, rest = piece.rpartition(b"\n")
        if not newline:
            self._parts.append(piece)
            return []
        whole = b"".join((*self._parts, head))
        self._parts = [rest]
        return whole.split(b"\n")

    def rest(self) -> bytes:
        """The beginning of a line that is not complete; it is taken out."""
        rest = b"".join(self._parts)
        self._parts = []
        return rest


class EventReader:
    """Takes a stream in as it comes. Source: WHATWG HTML, "Interpreting an event stream"."""

    def __init__(self) -> None:
        self._lines = LineSplitter()
        self._name = self._id = ""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[SentEvent]:
        """The events that are complete now."""
        for raw in self._lines.feed(piece):
            line = raw.removesuffix(b"\r")
            if not line:
                if self._data:
                    yield SentEvent(self._name or "message", b"\n".join(self._data), self._id)
                self._name, self._data = "", []
                continue
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                self._data.append(value)
            elif field == b"event":
                self._name = value.decode("utf-8", "replace")
            elif field == b"id" and b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
