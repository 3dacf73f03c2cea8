"""The log of one attempt: its head, its newest lines, and a mark where it was cut. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from muster_monitor.log_lines import Line, cut_mark, encode

# Together the cap of 1 MiB per attempt: how it began and how it ended is what is asked for.
HEAD_BYTES = 512 * 1024
TAIL_BYTES = 512 * 1024
# What Python keeps besides a line's own bytes: tuple, integer, bytes header.
LINE_OVERHEAD_BYTES = 128
LOG_OVERHEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class _Stored:
    index: int
    encoded: bytes


class AttemptLog:
    """Lines come with ascending indexes; one that was there already is ignored.

    While `wants_older` is true lines that are missing here may lie in storage.
    `changed` and `flushed` are positions of the owner's counter: the newest change, and the newest
    one that storage holds.
    """

    __slots__ = (
        "_cut_bytes",
        "_cut_lines",
        "_head",
        "_head_bytes",
        "_head_full",
        "_last_at_ms",
        "_next_index",
        "_tail",
        "_tail_bytes",
        "changed",
        "complete",
        "dirty_since_ms",
        "flushed",
        "wants_older",
    )

    def __init__(self, now_ms: int) -> None:
        self._head: list[_Stored] = []
        self._tail: deque[_Stored] = deque()
        self._head_bytes = 0
        self._tail_bytes = 0
        self._head_full = False
        self._cut_lines = 0
        self._cut_bytes = 0
        self._next_index = 0
        self._last_at_ms = 0
        self.complete = False
        self.wants_older = False
        self.changed = 0
        self.flushed = 0
        self.dirty_since_ms = now_ms

    @property
    def dirty(self) -> bool:
        return self.changed > self.flushed

    @property
    def next_index(self) -> int:
        return self._next_index

    @property
    def truncated(self) -> bool:
        return self._cut_lines > 0

    @property
    def line_count(self) -> int:
        return len(self._head) + len(self._tail)

    @property
    def memory_bytes(self) -> int:
        overhead = LOG_OVERHEAD_BYTES + self.line_count * LINE_OVERHEAD_BYTES
        return self._head_bytes + self._tail_bytes + overhead

    def append(self, line: Line) -> bool:
        """False for a line that was there already."""
        if line.index < self._next_index:
            return False
        if line.index > self._next_index:
            # What lies between went to another monitor, which has stored it, or is lost.
            self.wants_older = True
        self._next_index = line.index + 1
        self._last_at_ms = line.at_ms
        self._place(_Stored(line.index, encode(line)))
        return True

    def merge_older(self, older: Sequence[Line]) -> None:
        """Puts what storage holds before what is known here; the same lines count once."""
        own = [*self._head, *self._tail]
        own_cut = (self._cut_lines, self._cut_bytes)
        next_index, last_at_ms = self._next_index, self._last_at_ms
        self._head, self._tail = [], deque()
        self._head_bytes = self._tail_bytes = self._cut_lines = self._cut_bytes = 0
        self._head_full, self._next_index = False, 0
        for line in older:
            if line.cut_lines:
                self._cut(line.cut_lines, line.cut_bytes)
                self._next_index = max(self._next_index, line.index + 1)
            else:
                self.append(line)
        self.wants_older = False
        if own_cut[0]:
            self._cut(*own_cut)
        for stored in own:
            if stored.index >= self._next_index:
                self._place(stored)
        self._next_index = max(next_index, self._next_index)
        self._last_at_ms = max(last_at_ms, self._last_at_ms)

    def shed(self) -> None:
        """Gives up about half of what is kept, oldest of the tail first, and marks the cut."""
        if self._tail:
            for _ in range((len(self._tail) + 1) // 2):
                self._drop_oldest_of_tail()
            return
        self._head_full = True
        for stored in self._head[len(self._head) // 2 :]:
            self._cut(1, len(stored.encoded))
            self._head_bytes -= len(stored.encoded)
        del self._head[len(self._head) // 2 :]

    def lines_after(self, index: int, limit: int) -> list[bytes]:
        """Encoded lines whose index is above `index` (-1 = from the start), at most `limit`.

        The mark of the cut stands in its place.
        """
        out: list[bytes] = []
        if self._head and self._head[-1].index > index:
            out.extend(s.encoded for s in self._head if s.index > index)
        # Marked only for a reader who meets the cut on the way.
        if self._mark_index() > index:
            out.extend(self._mark())
        if not self._tail or self._tail[-1].index <= index:
            return out[:limit]
        # Indexes ascend, so what is wanted is the end of the tail.
        wanted = 0
        for stored in reversed(self._tail):
            if stored.index <= index:
                break
            wanted += 1
        out.extend(s.encoded for s in islice(self._tail, len(self._tail) - wanted, None))
        return out[:limit]

    def blob(self) -> bytes:
        """What is stored: head, mark of the cut, tail."""
        parts = [s.encoded for s in self._head]
        parts.extend(self._mark())
        parts.extend(s.encoded for s in self._tail)
        return b"".join(parts)

    def _mark_index(self) -> int:
        """That of the last line left out, so that readers can go on after it."""
        return (self._tail[0].index if self._tail else self._next_index) - 1

    def _mark(self) -> list[bytes]:
        if not self._cut_lines:
            return []
        index = self._mark_index()
        return [encode(cut_mark(index, self._last_at_ms, self._cut_lines, self._cut_bytes))]

    def _place(self, stored: _Stored) -> None:
        size = len(stored.encoded)
        self._next_index = max(self._next_index, stored.index + 1)
        if not self._head_full and self._head_bytes + size <= HEAD_BYTES:
            self._head.append(stored)
            self._head_bytes += size
            return
        self._head_full = True
        self._tail.append(stored)
        self._tail_bytes += size
        while self._tail_bytes > TAIL_BYTES:
            self._drop_oldest_of_tail()

    def _drop_oldest_of_tail(self) -> None:
        stored = self._tail.popleft()
        self._tail_bytes -= len(stored.encoded)
        self._cut(1, len(stored.encoded))

    def _cut(self, lines: int, size_bytes: int) -> None:
        self._cut_lines += lines
        self._cut_bytes += size_bytes
        self._head_full = True
