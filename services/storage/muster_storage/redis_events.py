"""The event log in Redis: a stream whose entries each hold the events of one write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from muster_storage.records import LogBatch, LogEntry
from muster_storage.redis_link import KEY_PREFIX, RedisLink, Reply

_EVENTS = f"{KEY_PREFIX}events"
_NEWS = f"{KEY_PREFIX}news"
# Of entries in one read: each may hold a megabyte, and most hold a few events.
_FIRST_ENTRIES, _MOST_ENTRIES = 16, 256
# Of events in one answer, so that a reader far behind does not fill this process.
_MAX_READ_BYTES = 4 * 1024 * 1024


class RedisEvents:
    """EventLog. `tail_link` is only for waiting: a wait blocks its connection."""

    def __init__(self, link: RedisLink, tail_link: RedisLink) -> None:
        self._link = link
        self._tail_link = tail_link
        self._heard: Callable[[LogBatch | None], None] | None = None
        self._writes = 0

    @property
    def writing(self) -> bool:
        return self._writes > 0

    def attend(self, heard: Callable[[LogBatch | None], None]) -> None:
        self._heard = heard

    @contextmanager
    def write(self) -> Iterator[None]:
        """Around a call that writes events and tells of them by `wrote`."""
        self._writes += 1
        try:
            yield
        finally:
            self._writes -= 1
            if not self._writes and self._heard is not None:
                self._heard(None)

    def wrote(self, first: int, runs: list[tuple[bytes, list[bytes]]]) -> None:
        """Events of this process that the log holds from number `first` on."""
        if self._heard is not None and first:
            self._heard(LogBatch(first, runs))

    async def last(self) -> int:
        return int(await self._link.call("GET", f"{KEY_PREFIX}seq") or 0)

    async def after(self, seq: int, limit: int) -> list[LogEntry]:
        found: list[LogEntry] = []
        size, count = 0, min(limit, _FIRST_ENTRIES)
        while True:
            low = found[-1].seq if found else seq
            reply = await self._link.call("XRANGE", _EVENTS, f"{low + 1}-0", "+", "COUNT", count)
            for ident, fields in reply:
                found += [entry for entry in _entries(ident, fields) if entry.seq > low]
                size += sum(map(len, fields))
            if len(reply) < count or len(found) >= limit or size >= _MAX_READ_BYTES:
                return found[:limit]
            count = min(2 * count, _MOST_ENTRIES)

    async def wait_beyond(self, seq: int, wait_s: float) -> int:
        reply: Reply = await self._tail_link.call(
            *("XREAD", "COUNT", 1, "BLOCK", max(1, int(wait_s * 1000))),
            *("STREAMS", _NEWS, f"{seq}-0"),
        )
        return int(reply[0][1][-1][0][:-2]) if reply else seq


def _entries(ident: bytes, fields: list[bytes]) -> list[LogEntry]:
    # b"17-0": the last event's number; [head, (length, event)..., head, (length, event)..., ...]
    found: list[tuple[bytes, bytes]] = []
    for head, run in zip(fields[::2], fields[1::2], strict=True):
        at = 0
        while at < len(run):
            size = int.from_bytes(run[at : at + 4], "big")
            found.append((head, run[at + 4 : at + 4 + size]))
            at += 4 + size
    first = int(ident[:-2]) - len(found) + 1
    return [LogEntry(first + n, head, event) for n, (head, event) in enumerate(found)]
